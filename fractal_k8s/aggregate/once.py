"""What is done once for a sweep, however many processes make passes over it, and at the same time.

<store>/<sweep-id>/aggregate/done/<kind>.json     the value that it was last done with
<store>/<sweep-id>/aggregate/doing/<kind>/...     who is at it, claimed; deleted afterwards
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from typing import Final

from fractal_k8s.errors import StoreError
from fractal_k8s.results.listing import FOLDER
from fractal_k8s.results.store import SweepStore

# who has not ended by then was killed
_LOST_S: Final = 900.0


def do_once(folder: SweepStore, kind: str, value: str, action: Callable[[], bool]) -> None:
    """Does something unless it was done with that value, or somebody is at it.

    Killed before it has written down that it was done, it is done again by who comes after 15
    minutes.

    Args:
        kind: a name that can stand in a key.
        action: returns whether it worked; if not, the next one tries.

    Raises:
        StoreError: the store cannot be read or written.
    """
    if _is_done(folder, kind, value):
        return
    tag = hashlib.sha256(value.encode()).hexdigest()[:12]
    claim = folder.key(FOLDER, "doing", f"{kind}-{tag}")
    mine = json.dumps({"by": secrets.token_hex(8), "at": time.time()}).encode()
    first = folder.files.claim(claim, mine)
    if first != mine:
        if _is_lost(first):
            _release(folder, claim)
        return
    try:
        # somebody may have ended between the first look and the claim
        if not _is_done(folder, kind, value) and action():
            done = json.dumps({"value": value}).encode()
            folder.files.put(folder.key(FOLDER, "done", f"{kind}.json"), done)
    finally:
        _release(folder, claim)


def _release(folder: SweepStore, claim: str) -> None:
    """Lets others try; where nothing may be deleted, one try must do."""
    with contextlib.suppress(StoreError):
        folder.files.remove(claim)


def _is_done(folder: SweepStore, kind: str, value: str) -> bool:
    data = folder.files.get(folder.key(FOLDER, "done", f"{kind}.json"))
    try:
        return data is not None and bool(json.loads(data)["value"] == value)
    except (ValueError, KeyError, TypeError):
        return False


def _is_lost(claim: bytes) -> bool:
    try:
        return time.time() - float(json.loads(claim)["at"]) > _LOST_S
    except (ValueError, KeyError, TypeError):
        return True
