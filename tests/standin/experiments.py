"""A server that keeps W&B runs as the client sends them: numbers, files, artifacts.

A run of an id that is there is gone on with; an artifact whose digest is known is not asked for
again. The server can be told to be slow, to fail, and to know only one key.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from werkzeug import Request, Response

from standin.serving import http_server


@dataclass
class Run:
    """What is known of one run."""

    name: str
    place: Mapping[str, str]
    # what it was created with, and each time it was gone on with
    sent: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    # by line number, so that a line that is sent again is kept once
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    is_ended: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.lines[number] for number in sorted(self.lines)]

    def values(self) -> dict[str, Any]:
        """The configuration without what the client adds."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}


@dataclass
class Version:
    """A version of an artifact."""

    id: str
    name: str
    kind: str
    digest: str
    run: str
    is_committed: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Experiments:
    """What is kept, and how the server behaves."""

    url: str = ""
    # the only one that is let in; None = any
    key: str | None = None
    # seconds before every answer, or before those to paths that begin so
    delay: float = 0.0
    slow: str = "/"
    # the status of every answer while it is not 200
    status: int = 200
    runs: dict[str, Run] = field(default_factory=dict)
    versions: list[Version] = field(default_factory=list)
    # names of queries, methods and paths of everything else
    asked: list[str] = field(default_factory=list)
    # everything that was sent, as it came
    received: list[bytes] = field(default_factory=list)

    def uploads(self) -> list[str]:
        """Names of the files that were uploaded."""
        return [PurePosixPath(path).name for path in self.asked if path.startswith("PUT /storage/")]

    def answer(self, request: Request) -> Response:
        data = request.get_data()
        if request.path.startswith(self.slow):
            time.sleep(self.delay)
        self.received.append(data)
        if self.status != 200:
            self.asked.append(f"{request.method} {request.path} {self.status}")
            return Response("{}", self.status)
        if request.method == "PUT":  # with an address that is signed
            self.asked.append(f"PUT {request.path}")
            self._file_for(request.path)[PurePosixPath(request.path).name] = data
            return Response("")
        given = request.authorization
        if self.key is not None and (given is None or given.password != self.key):
            self.asked.append(f"{request.method} {request.path} 401")
            return _json({"errors": [{"message": "user is not logged in"}]}, 401)
        if request.path == "/graphql":
            return self._graphql(json.loads(data))
        self.asked.append(f"{request.method} {request.path}")
        if request.path.endswith("/file_stream"):
            self._stream(request.path.split("/")[-2], json.loads(data))
            return _json({"limits": {}})
        return _json({})

    # --- queries ---

    def _graphql(self, body: dict[str, Any]) -> Response:
        match = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
        name = match[1] if match else ""
        self.asked.append(name)
        answers = {
            "ArtifactType": self._artifact_type,
            "CommitArtifact": self._commit,
            "CreateArtifact": self._create_artifact,
            "CreateArtifactFiles": self._artifact_files,
            "CreateArtifactManifest": self._manifest,
            "CreateRunFiles": self._run_files,
            "RunResumeStatus": self._resume_status,
            "UpsertBucket": self._upsert,
            "Viewer": self._viewer,
        }
        if name not in answers:
            return _json({"data": {}})
        return _json({"data": answers[name](body.get("variables") or {})})

    def _viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        place = {"project": given.get("project") or "", "entity": given.get("entity") or "me"}
        is_new = name not in self.runs
        run = self.runs.setdefault(name, Run(name, place))
        run.sent.append(given)
        run.config.update(json.loads(given.get("config") or "{}"))
        run.is_ended = False
        project = {
            "id": "p",
            "name": run.place["project"],
            "entity": {"id": "e", "name": run.place["entity"]},
        }
        bucket = {
            "id": f"id-{name}",
            "name": name,
            "displayName": given.get("displayName") or name,
            "project": project,
            "config": json.dumps(run.config),
            "historyLineCount": len(run.lines),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _resume_status(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        model = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
        if run is None:
            return {"model": {**model, "bucket": None}}
        tail = [json.dumps(row) for row in run.rows[-1:]]
        bucket = {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": run.sent[0].get("tags") or [],
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**model, "bucket": bucket}}

    def _run_files(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": self._address("runs", given["run"], name)}
            for name in given["files"]
        ]
        found = {"runID": f"id-{given['run']}", "uploadHeaders": [], "files": files}
        return {"createRunFiles": found}

    # --- artifacts ---

    def _artifact_type(self, given: dict[str, Any]) -> dict[str, Any]:
        name = str(given["name"]).partition(":")[0]
        kinds = [version.kind for version in self.versions if version.name == name]
        found = {"artifactType": {"name": kinds[0]}} if kinds else None
        return {"project": {"artifact": found}}

    def _create_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        wanted = given["input"]
        name, digest = wanted["artifactCollectionName"], wanted["digest"]
        known = [one for one in self.versions if one.name == name]
        version = next((one for one in known if one.digest == digest), None)
        if version is None:
            made = f"v-{len(self.versions)}"
            kind = wanted["artifactTypeName"]
            version = Version(made, name, kind, digest, wanted["runName"])
            self.versions.append(version)
        done = [one for one in known if one.is_committed]
        latest = {"id": done[-1].id, "versionIndex": len(done) - 1} if done else None
        artifact = {
            "id": version.id,
            "state": "COMMITTED" if version.is_committed else "PENDING",
            "artifactSequence": {"id": f"s-{name}", "latestArtifact": latest},
        }
        return {"createArtifact": {"artifact": artifact}}

    def _manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        file: dict[str, Any] = {"id": "f"}
        if given["includeUpload"]:
            file["uploadUrl"] = self._address("artifacts", given["artifactID"], given["name"])
            file["uploadHeaders"] = []
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def _artifact_files(self, given: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "storagePath": one["name"],
                "uploadUrl": self._address("artifacts", one["artifactID"], one["name"]),
                "uploadHeaders": [f"Content-MD5:{one['md5']}"],
                "uploadMultipartUrls": None,
                "artifact": {"id": one["artifactID"]},
            }
            for one in given["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _commit(self, given: dict[str, Any]) -> dict[str, Any]:
        version = self._version(given["artifactID"])
        version.is_committed = True
        return {"commitArtifact": {"artifact": {"id": version.id, "digest": version.digest}}}

    def _version(self, artifact: str) -> Version:
        return next(one for one in self.versions if one.id == artifact)

    # --- files ---

    def _address(self, kind: str, owner: str, name: str) -> str:
        return f"{self.url}/storage/{kind}/{quote(owner)}/{quote(name)}"

    def _file_for(self, path: str) -> dict[str, bytes]:
        """The files that an upload belongs to; those of what a test has cleared are lost."""
        kind, owner = path.split("/")[2:4]
        known: Mapping[str, Run | Version] = self.runs
        if kind == "artifacts":
            known = {version.id: version for version in self.versions}
        return known[owner].files if owner in known else {}

    def _stream(self, name: str, sent: dict[str, Any]) -> None:
        run = self.runs[name]
        for file, part in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if file == "wandb-history.jsonl":
                run.lines.update(enumerate(lines, part["offset"]))
            elif file == "wandb-summary.json":
                run.summary = lines[-1]
        run.is_ended |= bool(sent.get("complete"))


def _json(content: object, status: int = 200) -> Response:
    return Response(json.dumps(content), status, mimetype="application/json")


@contextmanager
def serving() -> Iterator[Experiments]:
    """A running server."""
    experiments = Experiments()
    with http_server(Request.application(experiments.answer)) as experiments.url:
        yield experiments
