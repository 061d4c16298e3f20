"""How a sweep is drawn: chosen once with `report`, kept beside the sweep, followed by every pass.

<store>/<sweep-id>/notes/drawing.json     only where something was chosen
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from fractal_k8s.results.store import SweepStore

_KIND: Final = "drawing"


@dataclass(frozen=True)
class Drawing:
    """What a person wants a sweep's summary to look like."""

    # one of `report.colours.SCHEMES`
    colours: str = "original"
    # whether there are figures for a paper beside map and page
    figures: bool = False


def drawing_of(
    folder: SweepStore, notes: Mapping[str, Mapping[str, Any]], problems: list[str]
) -> Drawing:
    """The choice among a sweep's notes; the default where there is none or it is not sound.

    Args:
        problems: is added what is wrong with it, in words.
    """
    note = notes.get(_KIND)
    if note is None:
        return Drawing()
    from fractal_k8s.report.colours import SCHEMES  # not before: it brings matplotlib

    colours, figures = note.get("colours"), note.get("figures")
    if isinstance(colours, str) and colours in SCHEMES and isinstance(figures, bool):
        return Drawing(colours, figures)
    problems.append(
        f"{folder.key('notes', f'{_KIND}.json')}: names no drawing that this release knows; the "
        f"default is drawn; choose again with: {folder.command('report')} --colours NAME"
    )
    return Drawing()


def stored_drawing(folder: SweepStore) -> Drawing:
    """The choice that is kept; the default where there is none."""
    return drawing_of(folder, folder.notes([]), [])


def choose(folder: SweepStore, *, colours: str | None, figures: bool) -> None:
    """Has every later pass draw so.

    Args:
        colours: None = as they were.

    Raises:
        StoreError: it cannot be written down.
    """
    notes = folder.notes([])
    before = drawing_of(folder, notes, [])
    wanted = asdict(Drawing(before.colours if colours is None else colours, figures))
    if notes.get(_KIND) != wanted:  # who draws the same again changes nothing
        folder.put_note(_KIND, wanted)
