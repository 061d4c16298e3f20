"""nanochat's optimizers: Muon for the matrices, AdamW for embedding and unembedding.

After karpathy/nanochat at 8f979a8 (nanochat/muon.py, gpt.py setup_optimizers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
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
# most elements of matrices that are orthogonalized together: 40 of a d20's attention, 10 of its MLP
_STACK_ELEMENTS: Final = 1 << 26

# update directions of one step, a stack of matrices each, bfloat16
Directions = list[Tensor]


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
    to about 0.7..1.2. Shape (..., rows, columns) is kept. A stack goes through as a whole, each
    matrix with the bits that it has alone on a CPU, where every operation rounds as in nanochat. On
    a GPU the sums are made inside the products: seven passes over the memory less, other roundings.
    """
    a, b, c = _NS_COEFFICIENTS
    tall = gradient.size(-2) > gradient.size(-1)
    x = (gradient.mT if tall else gradient).to(
        torch.bfloat16, memory_format=torch.contiguous_format
    )
    x = x if x.dim() > 2 else x[None]
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + _NS_EPS)
    for _ in range(_NS_STEPS):
        gram = x @ x.mT
        if x.is_cuda:
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        else:
            x = a * x + (b * gram + (c * gram) @ gram) @ x
    x = x.mT if tall else x
    return x.reshape(gradient.shape)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized (Jordan et al. 2024, Muon), for 2-D weights.

    The momentum is a moving average of the gradient, used with Nesterov's look-ahead; a weight with
    more rows than columns moves sqrt(rows / columns) as far. Weights of one shape, or of its
    transpose, are orthogonalized together, in stacks that depend on nothing but the model.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.02, "momentum": MUON_MOMENTUM})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: None = None, directions: Directions | None = None
    ) -> None:
        """One update.

        Args:
            directions: those of an earlier step from the same weights, gradients and momentum, to
                be taken as they are; an empty list is filled with this step's.
        """
        known = bool(directions)
        scales: dict[tuple[int, float], Tensor] = {}
        for number, stack in enumerate(self._stacks()):
            ahead = self._look_ahead(stack, fill=not known)
            if ahead is not None:
                moved = orthogonalize(ahead)
                if directions is not None:
                    directions.append(moved)
            else:
                assert directions is not None  # as `known` says
                moved = directions[number]
            for direction, (group, weight) in zip(moved, stack, strict=True):
                key = group, _stretch(weight)
                if key not in scales:  # one small product for many weights
                    rate = torch.as_tensor(self.param_groups[group]["lr"], device=weight.device)
                    scales[key] = rate * -key[1]
                weight.addcmul_(direction.mT if _is_tall(weight) else direction, scales[key])

    def _look_ahead(self, stack: list[tuple[int, Tensor]], *, fill: bool) -> Tensor | None:
        """Moves a stack's momenta; if asked their look-ahead, (matrices, short, long), bfloat16."""
        ahead = None
        if fill:
            first = stack[0][1]
            shape = len(stack), min(first.shape), max(first.shape)
            ahead = torch.empty(shape, dtype=torch.bfloat16, device=first.device)
        for place, (group, weight) in enumerate(stack):
            decay = self.param_groups[group]["momentum"]
            gradient = weight.grad
            assert gradient is not None  # a stack holds weights that have one
            state = self.state[weight]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradient)
            momentum: Tensor = state["momentum"]
            momentum.lerp_(gradient, 1 - decay)
            if ahead is not None:
                look = gradient.lerp(momentum, decay)
                ahead[place].copy_(look.mT if _is_tall(weight) else look)
        return ahead

    def _stacks(self) -> Iterator[list[tuple[int, Tensor]]]:
        """(number of its group, weight) of all weights with a gradient, equal shapes together."""
        by_shape: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        for number, group in enumerate(self.param_groups):
            for weight in group["params"]:
                if weight.grad is not None:
                    shape = tuple(sorted(weight.shape))
                    by_shape.setdefault(shape, []).append((number, weight))
        for (rows, columns), members in by_shape.items():
            size = max(1, _STACK_ELEMENTS // (rows * columns))
            for start in range(0, len(members), size):
                yield members[start : start + size]


def _is_tall(weight: Tensor) -> bool:
    return weight.size(0) > weight.size(1)


def _stretch(weight: Tensor) -> float:
    return math.sqrt(max(1.0, weight.size(0) / weight.size(1)))


class Optimizers:
    """Everything that updates a run's weights, under one multiplier of all learning rates.

    The rates that are applied lie in tensors beside the weights and are filled anew at each step:
    nothing that was compiled or captured ever meets one as a constant.

    Args:
        members: AdamW and Muon, as far as each has parameters; every group of theirs has its name,
            its full rate as `initial_lr`, and the rate applied as the tensor `lr`.
        n_embd: width of the model, which scales the rates of AdamW's own groups.
        clip_norm: largest norm of all gradients together; None = no clipping.
    """

    def __init__(
        self, members: list[torch.optim.Optimizer], n_embd: int, clip_norm: float | None
    ) -> None:
        self.members = members
        self.n_embd = n_embd
        self.clip_norm = clip_norm

    @property
    def parameters(self) -> list[nn.Parameter]:
        groups = (group for member in self.members for group in member.param_groups)
        return [parameter for group in groups for parameter in group["params"]]

    def step(self, multiplier: float, directions: Directions | None = None) -> None:
        """One update at `multiplier` times the full rates; the gradients are gone afterwards.

        Args:
            directions: see `Muon.step`.
        """
        self.set_rates(multiplier)
        self.update(directions)
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def set_rates(self, multiplier: float) -> None:
        """The rates of the next update: `multiplier` times the full ones."""
        for member in self.members:
            for group in member.param_groups:
                group["lr"].fill_(group["initial_lr"] * multiplier)

    def update(self, directions: Directions | None = None) -> None:
        """Clips the gradients and moves the weights; waits for nothing and keeps the gradients."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        for member in self.members:
            if isinstance(member, Muon):
                member.step(directions=directions)
            else:
                member.step()

    def reset(self, training: GPTTraining) -> None:
        """As new, for a run of this config, in place: the state is cleared where it lies.

        The config may differ from the one they were built for in rates and weight decay only.
        """
        rates = full_rates(training, self.n_embd)
        for member in self.members:
            for group in member.param_groups:
                group["initial_lr"] = rates[group["name"]]
                if "weight_decay" in group:
                    group["weight_decay"] = training.weight_decay
            for state in member.state.values():
                for value in state.values():
                    value.zero_()
            member.zero_grad(set_to_none=True)

    def set_momentum(self, momentum: float) -> None:
        """Muon's momentum from the next update on; pretraining raises it over its first steps."""
        for member in self.members:
            if isinstance(member, Muon):
                for group in member.param_groups:
                    group["momentum"] = momentum

    def state_dict(self) -> list[dict[str, Any]]:
        """What a resumed run needs, as nanochat keeps it: a state for each member."""
        states = [member.state_dict() for member in self.members]
        for state in states:
            for group in state["param_groups"]:
                group["lr"] = float(group["lr"])
        return states

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Takes the states over, into the tensors that are there: a CUDA graph knows no others."""
        for member, state in zip(self.members, states, strict=True):
            rates = [group["lr"] for group in member.param_groups]
            places = {weight: dict(own) for weight, own in member.state.items()}
            member.load_state_dict(state)
            for group, rate in zip(member.param_groups, rates, strict=True):
                group["lr"] = rate.fill_(group["lr"])
            for weight, own in places.items():
                for name, place in own.items():
                    member.state[weight][name] = place.copy_(member.state[weight][name])


def full_rates(training: GPTTraining, n_embd: int) -> dict[str, float]:
    """The rate of each group at multiplier 1.

    Those of embedding and unembedding, which AdamW always has, are scaled by
    (n_embd / 768) ** -0.5; a matrix's rate is applied as it is, by Muon and by AdamW alike.
    """
    scale = (n_embd / _BASE_WIDTH) ** -0.5
    return {
        "unembedding": training.unembedding_lr * scale,
        "embedding": training.embedding_lr * scale,
        "attention": training.attention_lr or training.matrix_lr,
        "mlp": training.mlp_lr or training.matrix_lr,
    }


def build_optimizers(
    parameters: Mapping[str, nn.Parameter], training: GPTTraining, n_embd: int
) -> Optimizers:
    """Fresh optimizers for the trained groups; each group keeps its full rate as `initial_lr`."""
    rates = full_rates(training, n_embd)
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in parameters.items():
        if is_trained(name, training):
            groups[group_of(name)].append(parameter)
    muon_names = ("attention", "mlp") if training.optimizer == "muon+adamw" else ()
    made: dict[str, list[dict[str, Any]]] = {"adamw": [], "muon": []}
    for name, members in groups.items():
        if members:
            rate = _rate_tensor(rates[name], members[0].device)
            entry = {"params": members, "name": name, "lr": rate, "initial_lr": rates[name]}
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
                capturable=made["adamw"][0]["lr"].is_cuda,
            )
        )
    if made["muon"]:
        optimizers.append(Muon(made["muon"]))
    return Optimizers(optimizers, n_embd, clip_norm=training.clip_norm)


def _rate_tensor(rate: float, device: torch.device) -> Tensor:
    """A rate as a scalar beside the weights, in the dtype that torch's fused AdamW reads there."""
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    return torch.tensor(rate, dtype=dtype, device=device)
