"""The dimension of the edge, with everything it was read from."""

from __future__ import annotations

from typing import Any, Final

from fractal_k8s.analysis.box_dimension import windows
from fractal_k8s.analysis.subject import Subject

TITLE: Final = "Edge dimension"


def analyse(subject: Subject) -> dict[str, Any]:
    """`BoxDimension.to_dict` of the map."""
    return windows(subject.labels & subject.known, subject.known).to_dict()


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("boundary pixels", f"{result['boundary_pixels']:,}")]
    if result["dimension"] is None:
        return [("dimension", f"none: {result['refused']}"), *rows]
    rows.append(("box sides", ", ".join(str(size) for size in result["box_sizes"])))
    if result["half_slopes"]:
        small, large = result["half_slopes"]
        rows.append(("slope of smaller / larger boxes", f"{small:.3f} / {large:.3f}"))
    return [("dimension", f"{result['dimension']:.4f}"), *rows]
