"""What others are told of a sweep's summary: a chat by webhook, W&B. Each thing once.

What could not be told is told by a later pass, also where nothing new was stored since.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fractal_k8s import notify
from fractal_k8s.aggregate.once import do_once
from fractal_k8s.analysis import lattice
from fractal_k8s.errors import CorruptError, StoreError
from fractal_k8s.results import holes as named
from fractal_k8s.results.files import LocalFiles
from fractal_k8s.results.published import published_files
from fractal_k8s.results.store import SUMMARY_FILE, SweepStore, parse_summary
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.tracking import summary as tracked
from fractal_k8s.tracking.modes import Wish

Say = Callable[[str], None]

# summaries that are told one after another where each is overtaken while it is told
_MOST_TIMES: Final = 3
# of summaries that W&B does not take, while passes go on
_BESIDE_S: Final = 60.0
# ending of the file that holds all of a W&B run but its media
_LOG: Final = ".wandb"


@dataclass
class Patience:
    """How long a pass still waits for a W&B that does not take what it is sent."""

    seconds: float = float("inf")


def publish(
    folder: SweepStore,
    plan: Plan,
    say: Say,
    *,
    has_ended: bool,
    patience: Patience | None = None,
) -> None:
    """Tells a chat that a sweep has ended, and W&B what it came to. Trouble is said, not raised.

    Args:
        folder: where its last summary is.
        has_ended: False = workers may still add to it: a complete sweep has ended all the same.
        patience: of this pass over several sweeps.
    """
    if not is_wanted():
        return
    wish = tracked.summary_wish()
    try:
        stored = _read(folder)
        if stored is None:
            return
        if has_ended or stored.summary["complete"]:
            counts = stored.summary["counts"]
            value = f"{counts['missing']} {counts['failed']}"
            _tell(folder, "end", value, end_text(folder, stored.summary), say)
        if wish is not None:
            _track(folder, plan, wish, stored, say, patience or Patience())
    except (StoreError, CorruptError) as error:
        say(f"the sweep's summary could not be announced: {error}")


def is_wanted() -> bool:
    """Whether there is anybody to be told."""
    return tracked.summary_wish() is not None or notify.is_wanted()


class Beside:
    """Tells W&B of summaries while passes go on, one at a time, in a thread of its own.

    What W&B does or does not do holds no pass up and ends none.
    """

    def __init__(self, say: Say) -> None:
        self.say = say
        self._thread: threading.Thread | None = None

    def publish(self, folder: SweepStore, plan: Plan) -> None:
        """Begins to tell of the last summary; who is at it already also tells of a later one."""
        if tracked.summary_wish() is None or (self._thread and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._publish, args=(folder, plan), daemon=True)
        self._thread.start()

    def _publish(self, folder: SweepStore, plan: Plan) -> None:
        try:
            publish(folder, plan, self.say, has_ended=False, patience=Patience(_BESIDE_S))
        except Exception as error:  # of a thread nobody else would tell it
            self.say(f"W&B: the summary is not tracked: {error}; a later pass tries again")

    def wait(self) -> None:
        """Returns when nobody is at it any more, after minutes at most."""
        if self._thread is not None:
            self._thread.join()


def announce_failed(folder: SweepStore, failed: Mapping[str, str], say: Say) -> None:
    """Tells a chat that indexes have failed for good, once a Job. Trouble is said, not raised.

    Args:
        failed: a sentence by the name of the Job.
    """
    for job, text in failed.items():
        try:
            _tell(folder, f"failed-{job}", "", f"{folder.sweep_id}: {text}", say)
        except StoreError as error:
            say(f"failed indexes could not be announced: {error}")


def end_text(folder: SweepStore, summary: Mapping[str, Any]) -> str:
    """The end of a sweep in a few lines."""
    head = "complete" if summary["complete"] else holes(summary)
    lines = [f"{folder.sweep_id}: {head}", *named.lines(summary["holes"])]
    if summary["trainable_fraction"] is not None:
        lines.append(f"trainable {summary['trainable_fraction']:.1%} of the points with a verdict")
    if summary.get("dimension") is not None:
        lines.append(f"edge dimension {summary['dimension']:.3f}")
    elif (so_far := lattice.text(summary.get("provisional"))) is not None:
        lines.append(f"edge dimension so far {so_far}")
    if problems := summary["problems"]:
        lines.append(f"{summary['num_problems']:,} problems, the first: {problems[0]}")
    lines.append(folder.where("summary"))
    return "\n".join(lines)


def holes(summary: Mapping[str, Any]) -> str:
    """What is missing of a map, as a part of a sentence."""
    counts = summary["counts"]
    return (
        f"ended with holes: {counts['missing']:,} points are missing and {counts['failed']:,} "
        f"failed, {summary['coverage']:.1%} have a verdict"
    )


def _tell(folder: SweepStore, kind: str, value: str, text: str, say: Say) -> None:
    def send() -> bool:
        if (why := notify.send(text)) is not None:
            say(f"the webhook could not be told: {why}")
        return why is None

    if notify.is_wanted():
        do_once(folder, kind, value, send)


# --- W&B ---


@dataclass(frozen=True)
class _Stored:
    """What is known of a summary before its other files are read."""

    summary: dict[str, Any]
    # sha256 of its manifest
    digest: str


def _read(folder: SweepStore) -> _Stored | None:
    """The last summary whose manifest was written; None if there is none."""
    found = published_files(folder, only=(SUMMARY_FILE,))
    if found is None:
        return None
    if (data := found.files.get(SUMMARY_FILE)) is None:
        raise CorruptError("; ".join(found.problems))
    summary = parse_summary(data, folder.where("summary", SUMMARY_FILE))
    return _Stored(summary, found.digest)


def _track(
    folder: SweepStore,
    plan: Plan,
    wish: Wish,
    stored: _Stored,
    say: Say,
    patience: Patience,
) -> None:
    """Has W&B shown a summary, and after it the one that another pass has made meanwhile."""
    for _ in range(_MOST_TIMES):
        if patience.seconds <= 0:
            return
        log = partial(_logged, folder, plan, wish, stored, say, patience)
        do_once(folder, "wandb", stored.digest, log)
        later = _read(folder)
        if later is None or later.digest == stored.digest:
            return
        stored = later


def _logged(
    folder: SweepStore,
    plan: Plan,
    wish: Wish,
    stored: _Stored,
    say: Say,
    patience: Patience,
) -> bool:
    began = time.monotonic()
    found = published_files(folder)
    if found is None or found.digest != stored.digest:
        return False  # there is a later one, which is told instead
    config, kept = plan.sweep.to_dict(), _Kept(folder, stored.digest[:12])
    logged = tracked.log_summary(
        wish, plan.sweep.id, config, stored.summary, found.files, keep=kept.run is None
    )
    kept.add(logged.kept)
    kept.discard_others(also_own=logged.done and not logged.kept)
    if not logged.done:
        patience.seconds -= time.monotonic() - began
        say(
            f"W&B: the summary is not tracked: {logged.reason}; a later pass tries again"
            f"{kept.hint()}"
        )
    return logged.done


class _Kept:
    """The last summary that no server has, as a run that `wandb sync` uploads."""

    def __init__(self, folder: SweepStore, attempt: str) -> None:
        self.folder = folder
        self.attempt = attempt
        found = [entry.key.split("/") for entry in folder.files.entries(folder.key("wandb"))]
        # names of the folders of all summaries, and of the run in this one's
        self._all = {key[2] for key in found if key[2].startswith("summary-")}
        mine = [key for key in found if key[2] == f"summary-{attempt}"]
        self.run = next((key[3] for key in mine if key[-1].endswith(_LOG)), None)

    def add(self, files: tuple[tuple[str, bytes], ...]) -> None:
        # the log last: without it the run is not whole
        for name, data in sorted(files, key=lambda file: file[0].endswith(_LOG)):
            self.folder.put_tracking("summary", self.attempt, name, data)
            self.run = name.partition("/")[0]

    def discard_others(self, *, also_own: bool) -> None:
        """Deletes those of earlier summaries, since a later one tells all, if there is one."""
        if self.run is None and not also_own:
            return
        for name in self._all:
            if also_own or name != f"summary-{self.attempt}":
                with contextlib.suppress(StoreError):
                    self.folder.files.remove(self.folder.key("wandb", name))

    def hint(self) -> str:
        """How to upload it, as the end of a sentence."""
        if self.run is None:
            return ""
        key = self.folder.key("wandb", f"summary-{self.attempt}", self.run)
        if isinstance(self.folder.files, LocalFiles):
            place = shlex.quote(str(self.folder.files.path(key)))
            return f", or upload it with: wandb sync {place}"
        fetch = self.folder.command("fetch")
        return f", or upload it with: {fetch} --to DIR && wandb sync DIR/{key}"
