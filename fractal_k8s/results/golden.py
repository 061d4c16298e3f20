"""The golden hashes of a sweep: what its machines made of the same few training steps.

    <store>/<sweep-id>/golden/<class>/

The first worker of a numerics class leaves its hash; a later one of that class must have the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from fractal_k8s.errors import CorruptError
from fractal_k8s.results.outcome import Environment
from fractal_k8s.results.store import SweepStore

_FOLDER = "golden"


@dataclass(frozen=True)
class Golden:
    """A hash, and the fingerprint (JSON text) of the machine that made it."""

    hash: str
    fingerprint: str


def claim_golden(folder: SweepStore, own: Environment) -> Golden:
    """The first hash that a machine of this class has left; the own one if there was none.

    Raises:
        CorruptError: what is stored is not what a worker writes.
    """
    assert own.golden is not None  # the caller has one to compare
    return put_golden(folder, own.numerics_class, Golden(own.golden, own.fingerprint or "{}"))


def put_golden(folder: SweepStore, numerics_class: str, golden: Golden) -> Golden:
    """Leaves a hash for later workers of the class; returns the first one left.

    Raises:
        CorruptError: what is stored is not what a worker writes.
    """
    content = {
        "numerics_class": numerics_class,
        "golden": golden.hash,
        "fingerprint": json.loads(golden.fingerprint),
    }
    place = folder.key(_FOLDER, _class_name(numerics_class))
    data = folder.files.claim(place, json.dumps(content, sort_keys=True).encode())
    try:
        first = json.loads(data)
        return Golden(str(first["golden"]), json.dumps(first["fingerprint"], sort_keys=True))
    except (ValueError, KeyError, TypeError):
        raise CorruptError(f"{place}: not a golden hash written by fractal-k8s") from None


def _class_name(numerics_class: str) -> str:
    return hashlib.sha256(numerics_class.encode()).hexdigest()[:12]


def short_hash(fingerprint: str | None) -> str:
    """Eight hex digits that stand for a fingerprint in a log."""
    return hashlib.sha256((fingerprint or "").encode()).hexdigest()[:8]


def differences(first: str, second: str) -> list[str]:
    """What two fingerprints do not have in common, as "driver 570.1 there, 580.2 here".

    The golden hash itself is left out.
    """
    there, here = _flat(json.loads(first)), _flat(json.loads(second))
    names = [name for name in sorted(there.keys() | here.keys()) if name != "golden"]
    return [
        f"{name} {there.get(name, 'not set')} there, {here.get(name, 'not set')} here"
        for name in names
        if there.get(name) != here.get(name)
    ]


def _flat(parts: dict[str, Any]) -> dict[str, Any]:
    """Parts of parts beside the others, under their own names."""
    flat: dict[str, Any] = {}
    for name, part in parts.items():
        flat.update(part if isinstance(part, dict) else {name: part})
    return flat
