"""Where an answer stands on a page: as it is, nearly so, or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final, Literal

Match = Literal["exact", "fuzzy", "none"]

# Share of characters that must agree, as SequenceMatcher counts, and the least characters that an
# answer must have before words that only resemble it are taken for it.
_ALIKE: Final = 0.8
_LEAST: Final = 5
# letters and digits: a line of underscores is a mark, and `[\W_]*` may stand between what is left
_WORD: Final = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Found:
    """How an answer was found, and where: spans of characters, in order."""

    match: Match
    spans: tuple[tuple[int, int], ...] = ()


def find_answer(page: str, answer: str) -> Found:
    """Looks for an answer, which is not empty, on a page of lines separated by newlines.

    `exact`: the same words, but for upper and lower case and white space, so also over the end of a
    line. `fuzzy`: the same letters and digits with other marks between them, or the one place that
    resembles it most, if at least 80 % of the characters agree. `none`: neither.
    """
    if spans := _spans(r"\s+".join(map(re.escape, answer.split())), answer, page):
        return Found("exact", spans)
    words = _WORD.findall(answer)
    letters = "".join(words)
    if not letters:
        return Found("none")
    # a short one must at least have the same words, or any table of digits would hold it
    parts = letters if len(letters) >= _LEAST else words
    if spans := _spans(r"[\W_]*".join(map(re.escape, parts)), letters, page):
        return Found("fuzzy", spans)
    alike = _most_alike(page, words)
    return Found("none") if alike is None else Found("fuzzy", (alike,))


def _spans(pattern: str, answer: str, page: str) -> tuple[tuple[int, int], ...]:
    """Where a pattern matches, but not where it begins or ends inside a word."""
    before = r"(?<!\w)" if re.match(r"\w", answer[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", answer[-1]) else ""
    found = re.finditer(before + pattern + after, page, re.IGNORECASE)
    return tuple(match.span() for match in found)


def _most_alike(page: str, words: list[str]) -> tuple[int, int] | None:
    """The run of words that resembles the answer most; the first of equals."""
    answer = "".join(words).lower()
    if len(answer) < _LEAST:
        return None
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(answer)
    best, place = 0.0, None
    for start, end, text in _runs(page, len(words)):
        if not _ALIKE <= len(text) / len(answer) <= 1 / _ALIKE:
            continue
        matcher.set_seq1(text)
        least = max(best, _ALIKE)
        if matcher.quick_ratio() < least:
            continue
        ratio = matcher.ratio()
        if ratio > best and ratio >= _ALIKE:
            best, place = ratio, (start, end)
    return place


def _runs(page: str, count: int) -> Iterator[tuple[int, int, str]]:
    """Runs of about `count` words: where they begin and end, and their letters in lower case."""
    words = [(match.start(), match.end(), match[0].lower()) for match in _WORD.finditer(page)]
    for length in range(max(1, count - 1), count + 2):
        for first in range(len(words) - length + 1):
            run = words[first : first + length]
            yield run[0][0], run[-1][1], "".join(word for _, _, word in run)
