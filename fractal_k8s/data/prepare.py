"""Pages with questions to conversations that fit: the question and the answer are kept whole, and
of the page what stands nearest to the answer.

What comes out of a page depends on the page, the limits and the tokenizer only, so the bytes are
the same whatever the number of processes.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from fractal_k8s import sealed
from fractal_k8s.data.conversations import Encoder, render
from fractal_k8s.data.hub import Tell
from fractal_k8s.data.matching import Found, find_answer
from fractal_k8s.data.pages import Page
from fractal_k8s.data.splits import Origin, line_of, written
from fractal_k8s.errors import RetryError, UsageError
from fractal_k8s.sealed import Seal

# pages that a process takes at a time
_CHUNK: Final = 32

NO_ANSWER: Final = "no answer"
LONG_ANSWER: Final = "answer too long"
LONG_QUESTION: Final = "question too long"
NO_TEXT: Final = "no text on the page"


@dataclass(frozen=True)
class Limits:
    """How long a conversation may be."""

    # ids of the whole rendered conversation
    tokens: int = 1750
    # characters of an answer
    answer: int = 150


@dataclass(frozen=True)
class Prepared:
    """A page as a conversation, with what became of it."""

    messages: list[dict[str, str]]
    match: str
    tokens: int
    # lines of the page, and how many of them are left whole
    lines: int
    kept_lines: int


@dataclass
class Counts:
    """What became of the pages of a split."""

    pages: int = 0
    kept: int = 0
    # kept, but not the whole page
    cut: int = 0
    # kept, from a page without a number
    unnumbered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    # of those kept: how the answer was found on the page
    matches: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    longest: int = 0

    def add(self, page: Page, made: Prepared | str) -> None:
        self.pages += 1
        if isinstance(made, str):
            self.dropped[made] = self.dropped.get(made, 0) + 1
            return
        self.kept += 1
        self.cut += made.kept_lines < made.lines
        self.unnumbered += page.number is None
        self.matches[made.match] = self.matches.get(made.match, 0) + 1
        self.tokens += made.tokens
        self.longest = max(self.longest, made.tokens)

    def to_dict(self) -> dict[str, Any]:
        content = asdict(self)
        return {
            **content,
            "dropped": dict(sorted(self.dropped.items())),
            "matches": dict(sorted(self.matches.items())),
        }


# --- a page ---


def conversation(page: Page, encoder: Encoder, limits: Limits) -> Prepared | str:
    """A page as a conversation within the limits, or why there is none.

    The answer is the first that is short enough.
    """
    if not page.answers:
        return NO_ANSWER
    answer = next((text for text in page.answers if len(text) <= limits.answer), None)
    if answer is None:
        return LONG_ANSWER
    if not page.lines:
        return NO_TEXT
    text = "\n".join(page.lines)
    found = find_answer(text, answer)
    fitting = _Fitting(page, answer, encoder, limits.tokens)
    for kept_lines, left in fitting.candidates(text, found):
        tokens = fitting.tokens(left)
        if tokens <= limits.tokens:
            return Prepared(
                fitting.messages(left), found.match, tokens, len(page.lines), kept_lines
            )
    return LONG_QUESTION


class _Fitting:
    """Tries how much of a page fits."""

    def __init__(self, page: Page, answer: str, encoder: Encoder, limit: int) -> None:
        self.page = page
        self.answer = answer
        self.encoder = encoder
        self.limit = limit

    def messages(self, text: str) -> list[dict[str, str]]:
        number = () if self.page.number is None else (f"Page {self.page.number}",)
        head = "\n".join(("Document:", *number, text))
        return [
            {"role": "user", "content": f"{head}\n\nQuestion: {self.page.question}"},
            {"role": "assistant", "content": self.answer},
        ]

    def tokens(self, text: str) -> int:
        return len(render(self.messages(text), self.encoder).ids)

    def candidates(self, text: str, found: Found) -> Iterator[tuple[int, str]]:
        """Parts of the page to try, largest first, each with how many whole lines it has.

        The whole page; then the lines that hold the answer with as many around them as there is
        room for; then fewer of them; then characters around the answer's first place.
        """
        lines = self.page.lines
        yield len(lines), text
        chosen = self._nearest(text, found)
        while len(chosen) >= self._first_lines(text, found):
            yield len(chosen), "\n".join(lines[k] for k in sorted(chosen))
            chosen.pop()
        start, end = found.spans[0] if found.spans else (0, 0)
        yield 0, self._around(text, start, end)

    def _nearest(self, text: str, found: Found) -> list[int]:
        """Lines that hold the answer, and then by their distance to it as many as may fit."""
        lines = self.page.lines
        ends = list(itertools.accumulate(len(line) + 1 for line in lines))
        spans = found.spans or ((0, 1),)
        answering = {
            line
            for start, end in spans
            for line in range(bisect_right(ends, start), bisect_right(ends, end - 1) + 1)
        }
        distances = _distances(len(lines), answering)
        order = sorted(range(len(lines)), key=lambda k: (distances[k], k))
        room, least = self.limit - self.tokens(""), self._first_lines(text, found)
        chosen: list[int] = []
        for line in order:
            # a line costs about as much alone as among others; what does not fit is dropped again
            room -= len(self.encoder.encode(lines[line] + "\n"))
            if room < -8 and len(chosen) >= least:
                break
            chosen.append(line)
        return chosen

    def _first_lines(self, text: str, found: Found) -> int:
        """How many lines the first place of the answer takes up."""
        if not found.spans:
            return 1
        start, end = found.spans[0]
        return text.count("\n", start, end) + 1

    def _around(self, text: str, start: int, end: int) -> str:
        """The most characters around a place that fit; the place alone if none do."""

        def part(width: int) -> str:
            return text[max(0, start - width) : end + width].strip()

        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.tokens(part(middle)) <= self.limit:
                low = middle
            else:
                high = middle - 1
        return part(low)


def _distances(count: int, marked: set[int]) -> list[int]:
    """How far each of `count` places is from the nearest marked one."""
    far = count
    forward, backward = [far] * count, [far] * count
    for k in range(count):
        forward[k] = 0 if k in marked else forward[k - 1] + 1 if k else far
    for k in reversed(range(count)):
        backward[k] = 0 if k in marked else backward[k + 1] + 1 if k + 1 < count else far
    return [min(pair) for pair in zip(forward, backward, strict=True)]


def _line_of(page: Page, made: Prepared) -> bytes:
    """A conversation as a line of the file, with where it comes from."""
    metadata = {
        "question_id": page.question_id,
        "document": page.document,
        "page": page.number,
        "match": made.match,
        "tokens": made.tokens,
        "lines": made.lines,
        "kept_lines": made.kept_lines,
    }
    return line_of({"messages": made.messages, "metadata": metadata})


# --- many pages ---


@dataclass(frozen=True)
class Maker:
    """How conversations are made, in this process or in others."""

    # loads the tokenizer; called once in every process
    load: Callable[[], Encoder]
    limits: Limits = Limits()
    workers: int = 1

    def prepared(self, pages: Iterable[Page]) -> Iterator[tuple[Page, Prepared | str]]:
        """Every page with what became of it, in order.

        Raises:
            RetryError: one of the processes was killed.
        """
        chunks = _chunked(pages)
        try:
            yield from self._alone(chunks) if self.workers == 1 else self._together(chunks)
        except BrokenProcessPool:
            raise RetryError(
                "one of the processes that prepare pages was killed, as for want of memory; run "
                "the same command with fewer --workers, which gives the same files"
            ) from None

    def _alone(self, chunks: Iterator[list[Page]]) -> Iterator[tuple[Page, Prepared | str]]:
        encoder = self.load()
        for chunk in chunks:
            for page in chunk:
                yield page, conversation(page, encoder, self.limits)

    def _together(self, chunks: Iterator[list[Page]]) -> Iterator[tuple[Page, Prepared | str]]:
        with ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self.load, self.limits),
        ) as pool:
            waiting: collections.deque[tuple[list[Page], Future[list[Prepared | str]]]]
            waiting = collections.deque()
            for chunk in chunks:
                with _deaf_children():
                    made = pool.submit(_many, chunk)
                waiting.append((chunk, made))
                if len(waiting) > 4 * self.workers:  # what is read waits for what is made
                    yield from _next_of(waiting)
            while waiting:
                yield from _next_of(waiting)


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that the block begins never hear of Ctrl-C, which a terminal sends to all of them.

    They end with the one that began them, which hears of it when the block is over.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next_of(
    waiting: collections.deque[tuple[list[Page], Future[list[Prepared | str]]]],
) -> Iterator[tuple[Page, Prepared | str]]:
    chunk, made = waiting.popleft()
    yield from zip(chunk, made.result(), strict=True)


_here: dict[str, Any] = {}


def _begin(load: Callable[[], Encoder], limits: Limits) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here.update(encoder=load(), limits=limits)


def _end_with_parent() -> None:
    """Ends this process when the one that began it is gone: nobody else would, if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only spawned processes get here
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _many(chunk: list[Page]) -> list[Prepared | str]:
    return [conversation(page, _here["encoder"], _here["limits"]) for page in chunk]


def _chunked(pages: Iterable[Page]) -> Iterator[list[Page]]:
    rest = iter(pages)
    while chunk := list(itertools.islice(rest, _CHUNK)):
        yield chunk


def prepare(
    splits: Mapping[str, Callable[[], Iterable[Page]]],
    maker: Maker,
    folder: Path,
    origin: Origin,
    tell: Tell,
) -> Seal:
    """Writes the conversations of all splits into a folder, READY last.

    Args:
        splits: by name, a function that begins to read the pages.

    Raises:
        UsageError: nothing is left to train on, or the folder cannot be written.
        CorruptError: a source is damaged.
        RetryError: one of the processes was killed.
    """
    with (
        sealed.being_filled(folder, tell) as alone,
        written(folder, alone=alone) as writing,
    ):
        report = {}
        for split, pages in splits.items():
            counts = Counts()
            writing.write(split, _counted(maker.prepared(pages()), counts))
            report[split] = counts.to_dict()
        if not writing.rows["train"]:
            raise UsageError(f"none of the {report['train']['pages']} pages could be used")
        facts = {**origin.facts, "limits": asdict(maker.limits), "report": report}
        return writing.finish(replace(origin, facts=facts))


def _counted(made: Iterable[tuple[Page, Prepared | str]], counts: Counts) -> Iterator[bytes]:
    for page, result in made:
        counts.add(page, result)
        if isinstance(result, Prepared):
            yield _line_of(page, result)
