"""Problems of a sweep in words: all of them in a file, the first ones everywhere else.

<store>/<sweep-id>/summary/problems.txt     one a line, only where they are many
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

PROBLEMS_FILE: Final = "problems.txt"
# that are named on the page, in a terminal and in JSON
_MOST: Final = 100


def in_summary(problems: Sequence[str]) -> dict[str, Any]:
    """What a summary tells of them. Keys: problems (the first ones), num_problems (of all)."""
    return {"problems": list(problems[:_MOST]), "num_problems": len(problems)}


def as_file(problems: Sequence[str]) -> dict[str, bytes]:
    """All of them under the name of their file; nothing where the summary names them all."""
    if len(problems) <= _MOST:
        return {}
    return {PROBLEMS_FILE: ("\n".join(problems) + "\n").encode()}


def shown(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The problems for people: those that a summary names, and how many there are besides.

    Args:
        summary: with the keys of `in_summary`.
    """
    named = tuple(str(problem) for problem in summary.get("problems") or ())
    others = int(summary.get("num_problems", 0)) - len(named)
    if others <= 0:
        return named
    return (*named, f"and {others:,} more; aggregate names all in summary/{PROBLEMS_FILE}")
