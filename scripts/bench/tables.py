"""Tables of the benchmarks, for a terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned."""
    widths = [max(len(cells[k]) for cells in (head, *rows)) for k in range(len(head))]
    return "\n".join(line(cells, widths) for cells in (head, rule(widths), *rows))


def rule(widths: Iterable[int]) -> list[str]:
    return ["-" * width for width in widths]


def line(cells: Iterable[str], widths: Iterable[int]) -> str:
    """One row, for a table whose rows are printed as they come."""
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "| " + " | ".join(padded) + " |"
