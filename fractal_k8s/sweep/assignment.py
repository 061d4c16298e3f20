"""What a worker is given: a sweep and how it is dealt, as one JSON text.

It is `sweep.json` in a store, and what a ConfigMap carries to the pods.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fractal_k8s.errors import CorruptError, SweepError
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import FORMAT, Sweep


@dataclass(frozen=True)
class Plan:
    """What a worker is given: a sweep, and how it is dealt into shards."""

    sweep: Sweep
    deal: Deal

    def to_json(self) -> str:
        content = {
            "format": self.sweep.version,
            "id": self.sweep.id,
            "sweep": self.sweep.to_dict(),
            "deal": self.deal.model_dump(mode="json", exclude_none=True),
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str) -> Plan:
        """Reads `to_json`'s text.

        Raises:
            CorruptError: the text is damaged or of a newer format.
            SweepError: the sweep in it is not valid.
        """
        try:
            content = json.loads(text)
            version, raw, deal = content["format"], content["sweep"], content.get("deal", {})
        except (ValueError, KeyError, TypeError):
            raise CorruptError(
                f"{source}: not a sweep written by fractal-k8s; move it away, or delete the sweep "
                "with its results, and launch again"
            ) from None
        if not isinstance(version, int) or version > FORMAT:
            raise CorruptError(
                f"{source}: written in sweep format {version}, this release reads up to {FORMAT}; "
                "upgrade fractal-k8s"
            )
        try:
            sweep = Sweep.parse(_as_trained(raw), source=source, version=version)
            plan = cls(sweep, Deal.model_validate(deal))
        except SweepError:
            raise
        except ValueError as error:
            raise CorruptError(f"{source}: the deal in it is not valid ({error})") from None
        if content.get("id") not in (None, plan.sweep.id):
            raise CorruptError(
                f"{source}: says {content['id']}, but its content is {plan.sweep.id}"
            )
        return plan


def _as_trained(raw: Any) -> Any:
    """A stored sweep has every key: one that lacks `packing` is older than it, and was padded."""
    training = raw.get("training") if isinstance(raw, dict) and raw.get("model") == "gpt" else None
    if not isinstance(training, dict) or "packing" in training:
        return raw
    return {**raw, "training": {**training, "packing": "padded"}}
