"""The one kind of model that every part of a sweep is: frozen, and strict about unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen piece of a sweep. Unknown keys are errors; NaN and infinity are not numbers here."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=False
    )
