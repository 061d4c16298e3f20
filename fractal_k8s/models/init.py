"""Weights of a model that was never trained (karpathy/nanochat at 8f979a8, GPT.init_weights)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fractal_k8s.models.gpt import GPT, GPTConfig


def random_weights(config: GPTConfig, seed: int) -> dict[str, Tensor]:
    """A checkpoint's tensors, float32, on the CPU, a function of shape and seed.

    A matrix is normal with std min(1, sqrt(fan_out / fan_in)) / sqrt(fan_in), the embedding with
    std 1. The output head and the last matrix of every attention and MLP are zero, so that the
    model begins as the identity and predicts every token alike.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("c_proj.weight") or name.startswith("lm_head."):
            weights[name] = torch.zeros(shape)
            continue
        fan_out, fan_in = shape
        std = min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
        if name.startswith("transformer.wte."):
            std = 1.0
        weights[name] = torch.randn(shape, generator=generator) * std
    return weights


def config_of_depth(depth: int, *, vocab_size: int, sequence_len: int = 2048) -> GPTConfig:
    """nanochat's shape of that many layers: 64 channels a layer, heads of 128 channels."""
    channels = 64 * depth
    heads = max(1, -(-channels // 128))
    return GPTConfig(sequence_len, vocab_size, depth, heads, heads, channels)
