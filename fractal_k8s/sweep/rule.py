"""The verdict rule: how an outcome becomes "trainable". Data, so changing it needs no training."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from fractal_k8s.sweep.base import Spec

_USED = {"ratio": {"window", "threshold"}, "bound": {"bound"}}


class VerdictRule(Spec):
    """What makes a stable run trainable.

    `ratio`: mean(last `window` losses) / first loss < `threshold` (arXiv:2402.06184's measure and
    fractal-llm's default). `bound`: final loss < `bound`.
    """

    rule: Literal["ratio", "bound"] = "ratio"
    # K: how many of the last losses are averaged
    window: PositiveInt = 20
    # the mean must be below this share of the first loss
    threshold: PositiveFloat = 1.0
    # the final loss must be below this
    bound: PositiveFloat = 10.0

    @model_validator(mode="after")
    def _only_what_the_rule_uses(self) -> VerdictRule:
        changed = {
            name
            for name, field in type(self).model_fields.items()
            if name != "rule" and getattr(self, name) != field.default
        }
        foreign = sorted(changed - _USED[self.rule])
        if foreign:
            raise ValueError(
                f"{', '.join(foreign)} does not belong to rule {self.rule!r}, "
                f"which uses {', '.join(sorted(_USED[self.rule]))}"
            )
        return self
