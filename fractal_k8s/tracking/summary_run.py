"""The process that gives a sweep's summary to W&B: JSON in on stdin, a line of it out on stdout.

In: `project`, `entity`, `sweep`, `config`, `numbers`, `files` (paths), `folder` (where W&B's client
writes) and `seconds`, after which the process ends, done or not. Out: `done`, and `said`, sentences
of what went wrong. WANDB_MODE tells whether it goes to a server, or into the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fractal_k8s.tracking.run import (
    PRIVATE,
    Say,
    Tracked,
    Tracker,
    harmless,
    open_run,
    why_unusable,
)

# how long the server may take to show that it is there
_PROBE_SECONDS: Final = 5.0
_REFUSED: Final = "the server refuses the API key, see WANDB_API_KEY"
_TABLE: Final = "grid.parquet"
_PAGE: Final = "report.html"


def _open(wanted: Mapping[str, Any], say: Say) -> Tracker | None:
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "online" and (why := why_unusable(_PROBE_SECONDS)) is not None:
        say(why)
        return None
    tracked = Tracked(
        project=wanted["project"],
        name=wanted["sweep"],
        group=wanted["sweep"],
        config=wanted["config"],
        folder=Path(wanted["folder"]),
        tags=("summary",),
        entity=wanted["entity"],
        run_id=_run_id(wanted["sweep"]),
        settings=PRIVATE,
        stays=False,
    )
    try:
        return open_run(tracked, mode, say)
    except Exception as error:  # whatever its client raises
        refused = "returned error 401" in str(error)
        say(_REFUSED if refused else f"the server cannot be used ({harmless(error)})")
        return None


def _run_id(sweep_id: str) -> str:
    """W&B takes no / \\ # ? % : in an id; a sweep's has none of them, but no harm in looking."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", sweep_id)


def _log(tracker: Tracker, wanted: Mapping[str, Any]) -> None:
    paths = {path.name: path for path in map(Path, wanted["files"])}
    tracker.log_media(
        images={path.stem: path for name, path in paths.items() if name.endswith(".png")},
        pages={"report": paths[_PAGE]} if _PAGE in paths else {},
    )
    if _TABLE in paths:
        tracker.add_artifact(wanted["sweep"], {_TABLE: paths[_TABLE]}, kind="dataset")
    tracker.finish(wanted["numbers"])


def _end_client() -> None:
    """Ends W&B's own process, which writes the last of its files only then."""
    with contextlib.suppress(Exception, SystemExit):  # whatever its client raises
        import wandb

        wandb.teardown()


def main() -> None:
    wanted = json.loads(sys.stdin.buffer.read())
    signal.alarm(wanted["seconds"])  # also where nobody waits for it any more
    said: list[str] = []
    tracker = _open(wanted, said.append)
    if tracker is not None:
        _log(tracker, wanted)
        _end_client()
    is_online = os.environ.get("WANDB_MODE", "online") == "online"
    done = tracker is not None and (tracker.is_uploaded or not is_online)
    os.write(1, f"\n{json.dumps({'done': done, 'said': said})}\n".encode())
    os._exit(0)  # the client's own end might wait for a server


if __name__ == "__main__":
    main()
