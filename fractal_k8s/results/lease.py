"""One launcher per sweep in object storage, where there are no locks.

A launcher leaves an object that says who it is and writes it again while it trains. One that has
not been written for a while is that of a launcher which is gone. All times are the store's, so that
no machine's clock matters. Pods of a cluster hold no lease: who sends their Job leaves a word where
the store is open to them, and what pods have just stored shows them.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from fractal_k8s.errors import ConflictError, CorruptError, StoreError
from fractal_k8s.results import schema
from fractal_k8s.results.files import Entry
from fractal_k8s.results.store import SweepStore
from fractal_k8s.sweep.definition import Sweep

_FOLDER: Final = "running"
_JOB_FILE: Final = "job.json"
_RENEWED_S: Final = 20.0
# three renewals may fail before a launcher is taken for gone
_GONE_S: Final = 90.0
# how long another launcher's object may take until everybody sees it
_SETTLE_S: Final = 2.0
# a launcher of another machine, whose clock may differ by a minute
_SKEW_S: Final = 60.0
# longer than a point takes: pods store what they have after each one, half a minute apart
_QUIET_S: Final = 600.0


def launcher_of(folder: SweepStore) -> str | None:
    """Who trains a sweep in object storage from a machine of their own; None if nobody does.

    Only reads, so that an age is that by this machine's clock.
    """
    for entry in _leases(folder):
        if abs(time.time_ns() - entry.modified_ns) / 1e9 < _GONE_S + _SKEW_S:
            owner = _read(folder, entry)
            if owner is not None and owner.get("state") == "holds":
                return _named(owner)
    return None


# --- the word that a Job was sent ---


def leave_word(folder: SweepStore, *, job: str, namespace: str, context: str) -> None:
    """Notes that a Job was sent, until `forget_job`."""
    content = {"job": job, "namespace": namespace, "context": context}
    folder.files.put(folder.key(_FOLDER, _JOB_FILE), json.dumps(content).encode())


def forget_job(folder: SweepStore) -> None:
    """Takes the word back: no Job of the sweep is left."""
    folder.files.discard([folder.key(_FOLDER, _JOB_FILE)])


def refuse_job(folder: SweepStore) -> None:
    """Refuses a sweep that a cluster trains, or is about to.

    Raises:
        ConflictError: a Job was sent, and nobody has said that it ended.
    """
    data = folder.files.get(folder.key(_FOLDER, _JOB_FILE))
    if data is None:
        return
    found = _parsed(data)
    raise ConflictError(
        f"{folder.sweep_id} was sent to a cluster as Job {found.get('job', 'of unknown name')} in "
        f"namespace {found.get('namespace')} of {found.get('context')}, and what that trains would "
        "be trained twice; if it has ended give --beside-pods, else wait for it or stop it with: "
        f"fractal-k8s cancel {folder.sweep_id} --context {found.get('context', 'NAME')}"
    )


# --- leases ---


def _leases(folder: SweepStore) -> list[Entry]:
    entries = folder.files.entries(folder.key(_FOLDER))
    return [entry for entry in entries if not entry.key.endswith(f"/{_JOB_FILE}")]


def _read(folder: SweepStore, entry: Entry) -> dict[str, Any] | None:
    """Who left an object; None if it is gone. One that says nothing is somebody's all the same."""
    data = folder.files.get(entry.key)
    return None if data is None else _parsed(data) or {"state": "holds"}


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(owner: Mapping[str, Any]) -> str:
    return f"process {owner.get('process', 'unknown')} on {owner.get('host', 'another machine')}"


class Lease:
    """Holds a sweep in object storage for a `with` block.

    Args:
        sweep: what is trained there, if pods of a cluster may be training it too; None = they
            are let be.
    """

    def __init__(self, folder: SweepStore, sweep: Sweep | None) -> None:
        self._folder, self._sweep = folder, sweep
        self._name = f"{secrets.token_hex(6)}.json"
        self._key = folder.key(_FOLDER, self._name)
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Takes the lease.

        Raises:
            ConflictError: another launcher trains this sweep, or pods do; says which.
        """
        self._write("asks")
        try:
            if self._sweep is not None:
                self._refuse_pods(self._sweep)
            time.sleep(_SETTLE_S)
            self._refuse_launchers()
        except BaseException:
            self._folder.files.discard([self._key])
            raise
        self._write("holds")
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewing.join()
        with contextlib.suppress(StoreError):  # where nothing may be deleted, this has to do
            self._write("ended")
        self._folder.files.discard([self._key])

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_S):
            try:
                self._write("holds")
            except StoreError:  # the next time may do; what is trained is kept until it does
                continue

    # --- others ---

    def _refuse_launchers(self) -> None:
        entries = _leases(self._folder)
        now = max(entry.modified_ns for entry in entries)
        for entry in entries:
            name = entry.key.rpartition("/")[2]
            age = (now - entry.modified_ns) / 1e9
            if name == self._name:
                continue
            if age > _GONE_S:
                self._folder.files.discard([entry.key])
                continue
            owner = _read(self._folder, entry)
            state = None if owner is None else owner.get("state")
            # of two that ask at the same time one must give way
            if owner is not None and (state == "holds" or (state == "asks" and name < self._name)):
                raise ConflictError(
                    f"{self._folder.sweep_id} is being trained by {_named(owner)}; watch it with: "
                    f"{self._folder.command('status --watch')}, or, if it is gone, try again in "
                    f"{_GONE_S:.0f} s"
                )

    def _refuse_pods(self, sweep: Sweep) -> None:
        """Refuses a sweep of which a pod has just stored points."""
        now = max(entry.modified_ns for entry in _leases(self._folder))  # its own is from now
        entries = self._folder.outcome_entries()
        last = max(entries, key=lambda entry: entry.modified_ns, default=None)
        if last is None or (age := (now - last.modified_ns) / 1e9) > _QUIET_S:
            return
        pod = self._pod_of(sweep, last)
        if pod is not None:
            raise ConflictError(
                f"{self._folder.sweep_id}: pod {pod} of a cluster stored points "
                f"{max(age, 0):.0f} s ago, and what it trains would be trained twice; if its Job "
                "has ended give --beside-pods, else wait for it or stop it with: "
                f"fractal-k8s cancel {self._folder.sweep_id} --context NAME"
            )

    def _pod_of(self, sweep: Sweep, entry: Entry) -> str | None:
        data = self._folder.files.get(entry.key)
        try:
            table = None if data is None else schema.from_bytes(data, sweep=sweep, source=entry.key)
        except CorruptError:  # the launch itself names what is damaged
            return None
        pods = [] if table is None else table.column("pod").drop_null().to_pylist()
        return str(pods[-1]) if pods else None

    # --- objects ---

    def _write(self, state: str) -> None:
        content = {"state": state, "host": platform.node(), "process": os.getpid()}
        self._folder.files.put(self._key, json.dumps(content).encode())
