"""The verdict rule: how an outcome becomes "trainable". Data, so changing it needs no training."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from fractal_k8s.sweep.base import Spec

_USED: Final = {
    "ratio": {"window", "threshold", "marginal"},
    "bound": {"bound", "marginal"},
    "probe": {"threshold", "marginal"},
}


class VerdictRule(Spec):
    """What makes a stable run trainable: a number of its outcome that is below a limit.

    `ratio`: mean(last `window` losses) / first loss < `threshold` (arXiv:2402.06184's measure and
    fractal-llm's default). `bound`: final loss < `bound`. `probe`: loss on the probe rows after the
    run / before it < `threshold`, so that the same rows are compared.

    A stable run whose number lies in limit..`marginal` is marginal: neither trainable nor not.
    """

    rule: Literal["ratio", "bound", "probe"] = "ratio"
    # K: how many of the last losses are averaged
    window: PositiveInt = 20
    # the mean must be below this share of the first loss, or the probe loss of the one before
    threshold: PositiveFloat = 1.0
    # the final loss must be below this
    bound: PositiveFloat = 10.0
    # where the band of marginal points ends, which begins at the limit; None = no such band
    marginal: PositiveFloat | None = None

    @property
    def limit(self) -> float:
        """What the rule's number must stay below."""
        return self.bound if self.rule == "bound" else self.threshold

    @property
    def sentence(self) -> str:
        """The rule in words."""
        text = {
            "ratio": f"mean of last {self.window} losses < {self.threshold:g} × first loss",
            "bound": f"final loss < {self.bound:g}",
            "probe": f"loss on the probe rows < {self.threshold:g} × the one before the run",
        }[self.rule]
        return text if self.marginal is None else f"{text}; marginal up to {self.marginal:g}"

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

    @model_validator(mode="after")
    def _band_lies_above_the_limit(self) -> VerdictRule:
        if self.marginal is not None and self.marginal <= self.limit:
            raise ValueError(
                f"marginal {self.marginal:g} must be above the limit {self.limit:g}, "
                "where the band begins"
            )
        return self
