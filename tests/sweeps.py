"""Texts of small sweep files."""

from __future__ import annotations

Resolution = tuple[int, int]


def network_text(name: str, resolution: Resolution, *, width: int = 4, steps: int = 30) -> str:
    """A sweep of a small network, which needs no files."""
    return f"""
name = "{name}"
model = "mlp"
resolution = {[*resolution]}
[axes.y]
knob = "output_lr"
low = 1e-2
high = 1e4
[axes.x]
knob = "input_lr"
low = 1e-2
high = 1e4
[training]
width = {width}
steps = {steps}
"""


def fine_tune_text(
    name: str, resolution: Resolution, *, checkpoint: str, dataset: str, tokens: int = 400
) -> str:
    """A sweep that tunes a model of golden size.

    Args:
        dataset: a file of conversations.
    """
    return f"""
name = "{name}"
model = "gpt"
checkpoint = "{checkpoint}"
dataset = "conversations:{dataset}"
resolution = {[*resolution]}
[axes.y]
knob = "matrix_lr"
low = 1e-3
high = 1e-1
[axes.x]
knob = "unembedding_lr"
low = 1e-3
high = 1e-1
[training]
tokens = {tokens}
batch_size = 2
max_seq_len = 100
[verdict]
window = 1
"""
