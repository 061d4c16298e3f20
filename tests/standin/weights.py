"""A server that speaks as much of W&B's artifacts and of the hub's models as their clients ask.

It serves folders of this machine, notes what it was asked for, and can be told to misbehave.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from werkzeug import Request, Response

from standin.serving import http_server

COMMIT: Final = "c0ffee" + "0" * 34
# stored apart from the repository, with its sha256: all others are git's own objects
_LARGE: Final = (".pt",)


@dataclass
class Weights:
    """What is served, and how."""

    url: str = ""
    # "v7" and "latest" -> folder; of the one artifact team/llm/sft
    versions: dict[str, Path] = field(default_factory=dict)
    # branch or tag -> commit -> folder; of the one repository team/d4
    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Path] = field(default_factory=dict)
    # method and path of every request
    asked: list[str] = field(default_factory=list)
    # called with a path and its content before a file is sent; may change or refuse it
    spoil: Callable[[str, bytes], Response | bytes] = lambda path, data: data

    def downloads(self) -> list[str]:
        return [path for path in self.asked if path.startswith("GET") and "/files/" in path]

    def answer(self, request: Request) -> Response:
        self.asked.append(f"{request.method} {request.path}")
        if request.path == "/graphql":
            return _json(self._graphql(request.get_json()))
        parts = request.path.strip("/").split("/")
        if parts[0] == "manifest":
            return _json(_manifest(self.versions[parts[1]]))
        if parts[0] == "artifactsV2":
            return self._artifact_file(request, parts[-2])
        if parts[:2] == ["api", "models"]:
            return self._repository("/".join(parts[2:4]), parts[-1])
        if len(parts) > 4 and parts[2] == "resolve":
            return self._hub_file(request, parts[3], "/".join(parts[4:]))
        return Response("not found", 404)

    # --- W&B ---

    def _graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        name, given = body.get("operationName") or body["query"], body.get("variables") or {}
        if "ArtifactMembershipByName" in name:
            return {"data": {"project": self._project(given)}}
        if "FetchArtifactManifest" in name:
            url = f"{self.url}/manifest/{given['id']}"
            return {"data": {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}}
        if "ServerFeatures" in name:
            return {"data": {"serverInfo": {"features": []}}}
        return {"data": {"viewer": {"id": "me", "username": "me", "entity": "team", "teams": None}}}

    def _project(self, given: dict[str, Any]) -> dict[str, Any] | None:
        if (given["entity"], given["project"]) != ("team", "llm"):
            return None
        collection, _, alias = given["name"].partition(":")
        if collection != "sft" or alias not in self.versions:
            return {"artifactCollectionMembership": None}
        folder = self.versions[alias]
        version = min(
            int(name[1:])
            for name, other in self.versions.items()
            if other == folder and name[1:].isdigit()
        )
        home = {
            "__typename": "ArtifactSequence",
            "name": "sft",
            "project": {
                "id": "p",
                "internalId": "1",
                "name": "llm",
                "entity": {"name": "team"},
            },
        }
        artifact = {
            "__typename": "Artifact",
            "id": f"v{version}",
            "artifactSequence": home,
            "versionIndex": version,
            "artifactType": {"name": "model"},
            "description": None,
            "metadata": None,
            "ttlDurationSeconds": -1,
            "ttlIsInherited": False,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": 1,
            "digest": "d",
            "commitHash": "c",
            "fileCount": 4,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "aliases": [],
        }
        return {
            "artifactCollectionMembership": {
                "__typename": "ArtifactCollectionMembership",
                "id": "m",
                "versionIndex": version,
                "createdAt": "2026-01-01T00:00:00Z",
                "aliases": [],
                "artifactCollection": home,
                "artifact": artifact,
            }
        }

    def _artifact_file(self, request: Request, hexhash: str) -> Response:
        for folder in self.versions.values():
            for path in _files(folder):
                if hashlib.md5(path.read_bytes()).hexdigest() == hexhash:
                    return self._send(request, path.relative_to(folder).as_posix(), path)
        return Response("not found", 404)

    # --- the hub ---

    def _repository(self, name: str, revision: str) -> Response:
        if name != "team/d4":
            return Response("{}", 404, {"X-Error-Code": "RepoNotFound"})
        commit = self.revisions.get(revision, revision)
        if commit not in self.commits:
            return Response("{}", 404, {"X-Error-Code": "RevisionNotFound"})
        folder = self.commits[commit]
        files = [_sibling(path.relative_to(folder).as_posix(), path) for path in _files(folder)]
        return _json({"id": name, "sha": commit, "siblings": files})

    def _hub_file(self, request: Request, commit: str, name: str) -> Response:
        path = self.commits[commit] / name
        if not path.is_file():
            return Response("", 404, {"X-Error-Code": "EntryNotFound"})
        answer = self._send(request, name, path)
        answer.headers["X-Repo-Commit"] = commit
        answer.headers["ETag"] = f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
        return answer

    def _send(self, request: Request, name: str, path: Path) -> Response:
        if request.method == "HEAD":
            return Response(path.read_bytes())
        self.asked.append(f"GET /files/{name}")
        data = self.spoil(name, path.read_bytes())
        return data if isinstance(data, Response) else Response(data)


def _json(content: object) -> Response:
    return Response(json.dumps(content), mimetype="application/json")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _manifest(folder: Path) -> dict[str, Any]:
    return {
        "version": 1,
        "storagePolicy": "wandb-storage-policy-v1",
        "storagePolicyConfig": {"storageLayout": "V2"},
        "contents": {
            path.relative_to(folder).as_posix(): {
                "digest": base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode(),
                "size": path.stat().st_size,
                "birthArtifactID": "b",
            }
            for path in _files(folder)
        },
    }


def _sibling(name: str, path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
    if path.suffix in _LARGE:
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def serving() -> Iterator[Weights]:
    """A running server."""
    weights = Weights()
    with http_server(Request.application(weights.answer)) as weights.url:
        yield weights
