"""The store: one folder per sweep with its definition, outcomes, logs and summary.

    <store>/<sweep-id>/sweep.json
    <store>/<sweep-id>/outcomes/<hh>/<shard>-<attempt>.parquet
    <store>/<sweep-id>/logs/<shard>-<attempt>.jsonl
    <store>/<sweep-id>/wandb/<shard>-<attempt>/...     what W&B's server could not be given
    <store>/<sweep-id>/summary/...
    <store>/<sweep-id>/repro/<place>/    a store of its own: points that a cluster trained again
    <store>/<sweep-id>/aggregate/...     of the aggregator; may be deleted while none runs

`hh` are two hex digits of a hash, so that keys do not share one long prefix. An attempt owns its
two objects and rewrites them whole; nobody else ever writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from fractal_k8s.errors import ConflictError, CorruptError, UsageError
from fractal_k8s.results import DEFAULT_STORE, schema
from fractal_k8s.results.files import Entry, Files, LocalFiles, open_files
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.axes import near
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep

_READERS: Final = 32
_MOST_NAMES: Final = 8
_FILES: Final = "files"
# How a shard of outcomes begins that were copied from another sweep instead of trained.
COPIED: Final = "copied"
PLAN_FILE: Final = "sweep.json"
SUMMARY_FILE: Final = "analysis.json"
PAGE_FILE: Final = "report.html"
MANIFEST_FILE: Final = "manifest.json"  # written last: size and sha256 of every other file
PROGRESS_FILE: Final = "progress.json"  # counts that are ahead of the summary, while there are any


@dataclass
class Outcomes:
    """Rows of all attempts at a sweep's points, and what could not be read."""

    table: pa.Table
    objects: int = 0
    problems: list[str] = field(default_factory=list)


class SweepStore:
    """One sweep's folder."""

    def __init__(self, files: Files, sweep_id: str) -> None:
        self.files = files
        self.sweep_id = sweep_id

    def key(self, *parts: str) -> str:
        return "/".join((self.sweep_id, *parts))

    def where(self, *parts: str) -> str:
        """A path or URI to show to a person."""
        return f"{self.files.place.rstrip('/')}/{self.key(*parts)}"

    def command(self, name: str) -> str:
        """The command line that does `name` to this sweep, to be printed as a next step."""
        here = os.path.abspath(self.files.uri) == os.path.abspath(DEFAULT_STORE)
        place = "" if here else f" --store {shlex.quote(self.files.uri)}"
        return f"fractal-k8s {name} {self.sweep_id}{place}"

    def remove(self) -> None:
        """Deletes all that is stored of the sweep."""
        self.files.remove(self.sweep_id)

    # --- sweep.json ---

    def read_plan(self) -> Plan | None:
        data = self.files.get(self.key(PLAN_FILE))
        if data is None:
            return None
        plan = Plan.from_json(data, source=self.where(PLAN_FILE))
        if plan.sweep.id != self.sweep_id:
            raise CorruptError(f"{self.where('sweep.json')}: holds {plan.sweep.id}")
        return plan

    def write_plan(self, plan: Plan) -> bool:
        """Writes sweep.json unless the same sweep is there already. True if it was written.

        Raises:
            ConflictError: another sweep is stored under this id.
        """
        stored = self.read_plan()
        if stored is not None:
            if stored.sweep.canonical_json() != plan.sweep.canonical_json():
                raise ConflictError(
                    f"{self.where('sweep.json')} holds another sweep under the same id; "
                    "choose another name or another --store"
                )
            return False
        self.files.put(self.key(PLAN_FILE), plan.to_json().encode())
        return True

    # --- outcomes ---

    def outcome_key(self, shard: str, attempt: str) -> str:
        spread = hashlib.sha256(shard.encode()).hexdigest()[:2]
        return self.key("outcomes", spread, f"{shard}-{attempt}.parquet")

    def put_outcomes(self, shard: str, attempt: str, table: pa.Table) -> None:
        """Writes an attempt's outcomes; see `schema.to_bytes` for the name that they carry."""
        key = self.outcome_key(shard, attempt)
        self.files.put(key, schema.to_bytes(table, key.rpartition("/")[2]))

    def log_key(self, shard: str, attempt: str) -> str:
        return self.key("logs", f"{shard}-{attempt}.jsonl")

    def outcome_entries(self, shard: str | None = None) -> list[Entry]:
        """The outcome objects of the sweep, or of one shard only."""
        if shard is None:
            entries = self.files.entries(self.key("outcomes"))
        else:
            folder = self.outcome_key(shard, "").rpartition("/")[0]
            entries = [
                entry
                for entry in self.files.entries(folder)
                if _name(entry).startswith(f"{shard}-")
            ]
        return [entry for entry in entries if entry.key.endswith(".parquet")]

    def read_outcomes(self, sweep: Sweep, entries: Iterable[Entry] | None = None) -> Outcomes:
        """The union of the given objects (default: all), unreadable ones named and left out."""
        chosen = list(self.outcome_entries() if entries is None else entries)
        tables: list[pa.Table] = [schema.outcome_schema(sweep).empty_table()]
        problems: list[str] = []
        with ThreadPoolExecutor(max_workers=_READERS) as readers:
            for entry, data in zip(
                chosen, readers.map(lambda entry: self.files.get(entry.key), chosen), strict=True
            ):
                if data is None:
                    continue
                try:
                    tables.append(schema.from_bytes(data, sweep=sweep, source=entry.key))
                except CorruptError as error:
                    problems.append(str(error))
        table = pa.concat_tables(tables).unify_dictionaries()
        return Outcomes(table, objects=len(chosen), problems=problems)

    def shard_entries(self, deal: Deal, shard: str) -> list[Entry]:
        """The objects that may hold points of a shard.

        Those of the shard itself; and those of every other deal of this sweep, unless there is
        none, or the deal names its positions (`only`), because then it was made from what those
        objects lack.
        """
        own = self.outcome_entries(shard)
        if deal.only is not None or self.deals() <= {deal.tag}:
            return own
        others = self.outcome_entries()
        return own + [entry for entry in others if not _name(entry).startswith(f"{deal.tag}-")]

    # --- what every worker must know of the others ---

    def record_deal(self, deal: Deal) -> None:
        """Notes that shards of this deal exist, before the first of them writes anything."""
        if deal.tag not in self.deals():
            text = deal.model_dump_json(exclude_none=True)
            self.files.put(self.key("deals", f"{deal.tag}.json"), text.encode())

    def deals(self) -> set[str]:
        """Tags of all deals under which this sweep was trained."""
        entries = self.files.entries(self.key("deals"))
        return {_name(entry).removesuffix(".json") for entry in entries}

    def claim_class(self, numerics_class: str) -> str:
        """The numerics class this sweep belongs to: the first one that was claimed.

        A worker claims its own before it trains; who finds another one there must not add to it.
        """
        text = json.dumps({"numerics_class": numerics_class})
        return _class_in(self.files.claim(self.key("classes"), text.encode()))

    def claimed_class(self) -> str | None:
        """The numerics class that was claimed first, or None."""
        data = self.files.claimed(self.key("classes"))
        return None if data is None else _class_in(data)

    def claim_files(self, digests: Mapping[str, str]) -> dict[str, str]:
        """sha256 of weights and data that a sweep belongs to which was launched without knowing it.

        Those of the first worker that claimed its own, by what they are of; every other one must
        have the same.
        """
        text = json.dumps(dict(digests), sort_keys=True)
        return self._digests_in(self.files.claim(self.key(_FILES), text.encode()))

    def claimed_files(self) -> dict[str, str]:
        """What was claimed first with `claim_files`; empty if nothing was."""
        data = self.files.claimed(self.key(_FILES))
        return {} if data is None else self._digests_in(data)

    def _digests_in(self, data: bytes) -> dict[str, str]:
        try:
            return {str(what): str(digest) for what, digest in json.loads(data).items()}
        except (ValueError, AttributeError):
            raise CorruptError(
                f"{self.where(_FILES)}: not digests written by fractal-k8s"
            ) from None

    # --- logs ---

    def read_logs(self) -> list[dict[str, Any]]:
        """Every point's log line of every attempt, oldest first.

        Raises:
            CorruptError: a line is not what an attempt writes.
        """
        lines: list[dict[str, Any]] = []
        for entry in self.files.entries(self.key("logs")):
            data = self.files.get(entry.key) or b""
            for number, text in enumerate(data.splitlines(), start=1):
                try:
                    line = json.loads(text)
                    line["time"], line["i"], line["j"], line["state"]
                except (ValueError, KeyError, TypeError):
                    raise CorruptError(f"{entry.key} line {number}: damaged log") from None
                lines.append(line)
        return sorted(lines, key=lambda line: str(line["time"]))

    # --- tracking ---

    def put_tracking(self, shard: str, attempt: str, name: str, data: bytes) -> None:
        """Keeps a file of an attempt's tracker that no server has."""
        self.files.put(self.key("wandb", f"{shard}-{attempt}", name), data)

    # --- notes: what other commands have found out about a sweep ---

    def put_note(self, kind: str, content: dict[str, Any]) -> None:
        """Keeps one piece of knowledge about the sweep, such as its controls; replaces the last."""
        self.files.put(self.key("notes", f"{kind}.json"), to_json(content))

    def notes(self, problems: list[str]) -> dict[str, dict[str, Any]]:
        """All notes, by kind; one that cannot be read is left out.

        Args:
            problems: is added what is wrong with notes, in words.
        """
        found: dict[str, dict[str, Any]] = {}
        for entry in self.files.entries(self.key("notes")):
            try:
                note = json.loads(self.files.get(entry.key) or b"")
            except ValueError:
                note = None
            if isinstance(note, dict):
                found[_name(entry).removesuffix(".json")] = note
            else:
                problems.append(
                    f"{entry.key}: a damaged note, left out; delete it, and what it told is asked "
                    "for or measured again"
                )
        return found

    # --- summary ---

    def put_summary(self, name: str, data: bytes) -> str:
        key = self.key("summary", name)
        self.files.put(key, data)
        return self.where("summary", name)

    def read_summary(self) -> dict[str, Any] | None:
        """analysis.json of the last aggregation, or None."""
        data = self.files.get(self.key("summary", SUMMARY_FILE))
        if data is None:
            return None
        return parse_summary(data, self.where("summary", SUMMARY_FILE))


def to_json(content: Mapping[str, Any]) -> bytes:
    """Plain data as the JSON files of a store hold it; NaN is refused."""
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def parse_summary(data: bytes, source: str) -> dict[str, Any]:
    """What an analysis.json tells.

    Raises:
        CorruptError: it is none.
    """
    try:
        summary = json.loads(data)
    except ValueError:
        raise CorruptError(f"{source}: not valid JSON; aggregate the sweep again") from None
    if not isinstance(summary, dict):
        raise CorruptError(f"{source}: not written by fractal-k8s; aggregate the sweep again")
    return summary


def _class_in(data: bytes) -> str:
    try:
        return str(json.loads(data)["numerics_class"])
    except (ValueError, KeyError, TypeError):
        raise CorruptError("classes/: not a numerics class written by fractal-k8s") from None


def is_copy(entry: Entry) -> bool:
    """Whether an outcome object holds copies, whose time and place are those of another sweep."""
    return _name(entry).startswith(f"{COPIED}-")


def _name(entry: Entry) -> str:
    return entry.key.rpartition("/")[2]


class Store:
    """A place that holds sweeps."""

    def __init__(self, uri: str) -> None:
        if not uri:
            raise UsageError(f"the store's URI is empty; leave --store out for {DEFAULT_STORE}")
        self.files = open_files(uri)

    @property
    def uri(self) -> str:
        return self.files.uri

    @property
    def is_local(self) -> bool:
        return isinstance(self.files, LocalFiles)

    def sweep(self, sweep_id: str) -> SweepStore:
        return SweepStore(self.files, sweep_id)

    def sweep_ids(self) -> list[str]:
        """Ids of all sweeps stored here, sorted; a damaged sweep.json is one, too."""
        names = self.files.folders()
        return [name for name in names if self.files.get(f"{name}/sweep.json") is not None]

    def find(self, text: str) -> SweepStore:
        """The sweep whose id is `text`, or whose name is, or, if only one does, starts with it.

        Raises:
            UsageError: no sweep or several match.
        """
        if not text:
            raise UsageError("the id of the sweep is empty; fractal-k8s list shows them all")
        if "/" not in text and self.files.get(f"{text}/sweep.json") is not None:
            return self.sweep(text)
        ids = self.sweep_ids()
        named = [name for name in ids if name.rpartition("-")[0] == text]
        matches = named or [name for name in ids if name.startswith(text)]
        if len(matches) == 1:
            return self.sweep(matches[0])
        if matches:
            raise UsageError(
                f"{text!r} stands for several sweeps: {', '.join(matches)}; give more of the id"
            )
        if not ids:
            raise UsageError(
                f"no sweep {text!r}: there are none in {self.files.place}; see --store"
            )
        shown = near(text, ids) if len(ids) <= _MOST_NAMES else "; fractal-k8s list shows them all"
        raise UsageError(f"no sweep {text!r} in {self.files.place}{shown}")

    def plan(self, text: str) -> tuple[SweepStore, Plan]:
        """The sweep that `find` finds, with its stored plan."""
        folder = self.find(text)
        plan = folder.read_plan()
        if plan is None:
            raise UsageError(f"no sweep {text!r} in {self.files.place}")
        return folder, plan
