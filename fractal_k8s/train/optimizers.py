"""nanochat's optimizers: Muon for the matrices, AdamW for embedding and unembedding.

After karpathy/nanochat at 8f979a8 (nanochat/muon.py, gpt.py setup_optimizers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from fractal_k8s.sweep.training import GPTTraining

ADAM_BETAS: Final = (0.8, 0.95)
ADAM_EPS: Final = 1e-10
MUON_MOMENTUM: Final = 0.95
_NS_STEPS: Final = 5
_NS_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_NS_EPS: Final = 1e-7
_BASE_WIDTH: Final = 768


def group_of(name: str) -> str:
    """Parameter group of a tensor of the model: embedding, unembedding, attention or mlp.

    The last two together are the group `matrix`.
    """
    if name.startswith("transformer.wte."):
        return "embedding"
    if name.startswith("lm_head."):
        return "unembedding"
    return "attention" if ".attn." in name else "mlp"


def is_trained(name: str, training: GPTTraining) -> bool:
    group = group_of(name)
    return (group if group in ("embedding", "unembedding") else "matrix") in (
        training.trainable_param_groups
    )


def orthogonalize(gradient: Tensor) -> Tensor:
    """Newton-Schulz iteration of degree 5 towards the nearest orthogonal matrix, in bfloat16.

    The coefficients make the slope at zero steep and do not converge to singular values of 1, but
    to about 0.7..1.2. Shape (rows, columns) is kept.
    """
    a, b, c = _NS_COEFFICIENTS
    x = gradient.bfloat16()
    tall = x.size(0) > x.size(1)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + _NS_EPS)
    for _ in range(_NS_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized (Jordan et al. 2024, Muon), for 2-D weights.

    The momentum is a moving average of the gradient, used with Nesterov's look-ahead; a weight with
    more rows than columns moves sqrt(rows / columns) as far.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.02, "momentum": MUON_MOMENTUM})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group["lr"], group["momentum"])

    def _update(self, weight: Tensor, lr: float, decay: float) -> None:
        gradient = weight.grad
        assert gradient is not None  # the caller skips weights without one
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - decay)
        ahead = gradient.lerp(momentum, decay)
        stretch = math.sqrt(max(1.0, weight.size(0) / weight.size(1)))
        weight.add_(orthogonalize(ahead), alpha=-lr * stretch)


class Optimizers:
    """Everything that updates a run's weights, under one multiplier of all learning rates.

    Args:
        members: AdamW and Muon, as far as each has parameters; every group of theirs has its full
            rate as `initial_lr`.
        clip_norm: largest norm of all gradients together; None = no clipping.
    """

    def __init__(self, members: list[torch.optim.Optimizer], clip_norm: float | None) -> None:
        self.members = members
        self.clip_norm = clip_norm

    @property
    def parameters(self) -> list[nn.Parameter]:
        groups = (group for member in self.members for group in member.param_groups)
        return [parameter for group in groups for parameter in group["params"]]

    def step(self, multiplier: float) -> None:
        """One update at `multiplier` times the full rates; the gradients are gone afterwards."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        for member in self.members:
            for group in member.param_groups:
                group["lr"] = group["initial_lr"] * multiplier
            member.step()
            member.zero_grad(set_to_none=True)

    def set_momentum(self, momentum: float) -> None:
        """Muon's momentum from the next update on; pretraining raises it over its first steps."""
        for member in self.members:
            if isinstance(member, Muon):
                for group in member.param_groups:
                    group["momentum"] = momentum

    def state_dict(self) -> list[dict[str, Any]]:
        """What a resumed run needs, as nanochat keeps it: a state for each member."""
        return [member.state_dict() for member in self.members]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)


def build_optimizers(
    parameters: Mapping[str, nn.Parameter], training: GPTTraining, n_embd: int
) -> Optimizers:
    """Fresh optimizers for the trained groups; each group keeps its full rate as `initial_lr`.

    The AdamW rates of embedding and unembedding are scaled by (n_embd / 768) ** -0.5; a matrix's
    rate is applied as it is, by Muon and by AdamW alike.
    """
    scale = (n_embd / _BASE_WIDTH) ** -0.5
    rates = {
        "unembedding": training.unembedding_lr * scale,
        "embedding": training.embedding_lr * scale,
        "attention": training.attention_lr or training.matrix_lr,
        "mlp": training.mlp_lr or training.matrix_lr,
    }
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in parameters.items():
        if is_trained(name, training):
            groups[group_of(name)].append(parameter)
    muon_names = ("attention", "mlp") if training.optimizer == "muon+adamw" else ()
    made = {"adamw": [], "muon": []}  # type: dict[str, list[dict[str, Any]]]
    for name, members in groups.items():
        if members:
            entry = {"params": members, "lr": rates[name], "initial_lr": rates[name]}
            made["muon" if name in muon_names else "adamw"].append(entry)
    optimizers: list[torch.optim.Optimizer] = []
    if made["adamw"]:
        optimizers.append(
            torch.optim.AdamW(
                made["adamw"],
                betas=ADAM_BETAS,
                eps=ADAM_EPS,
                weight_decay=training.weight_decay,
                fused=True,
            )
        )
    if made["muon"]:
        optimizers.append(Muon(made["muon"]))
    return Optimizers(optimizers, clip_norm=training.clip_norm)
