"""A hub of data sets on localhost: what `datasets` asks of one, with faults on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from werkzeug.wrappers import Request, Response

from standin.serving import http_server

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """The files of one commit, by path."""

    files: dict[str, bytes]
    commit: str = COMMIT
    # names of branches and tags that mean the commit
    names: tuple[str, ...] = ("main",)


@dataclass
class Fault:
    """What the next requests of a kind get instead of an answer."""

    # part of "METHOD path" of the requests it hits
    match: str
    status: int = 200
    # how many requests it hits
    times: int = 1
    # bytes of the right answer that are sent before the connection breaks; None = only the status
    cut: int | None = None


class Hub:
    """Answers from its repositories, and notes what it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self.url = ""
        # bytes of files, of all answers together
        self.sent = 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self._answer(Request(environ))(environ, start_response)

    def _answer(self, request: Request) -> Response:
        asked = f"{request.method} {request.path}"
        self.asked.append(asked)
        for fault in self.faults:
            if fault.times > 0 and fault.match in asked:
                fault.times -= 1
                if fault.cut is None:
                    return Response("trouble", fault.status)
                whole = self._page(request)
                return _cut(whole, fault.cut)
        return self._page(request)

    def _page(self, request: Request) -> Response:
        parts = request.path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            return self._facts("/".join(parts[2:4]), parts[4:], request)
        if parts[0] == "datasets" and len(parts) > 4 and parts[3] == "resolve":
            return self._file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]), request)
        return Response("no such page", 404)

    def _facts(self, name: str, rest: list[str], request: Request) -> Response:
        found = self._repository(name, rest[1] if len(rest) > 1 else "main")
        if isinstance(found, Response):
            return found
        if not rest or rest[0] == "revision":
            siblings = [
                {"rfilename": path, "size": len(data)} for path, data in found.files.items()
            ]
            facts = {"id": name, "sha": found.commit, "siblings": siblings, "private": False}
            return _json({**facts, "disabled": False, "gated": False, "tags": [], "downloads": 0})
        if rest[0] == "tree":
            return self._tree(found, "/".join(rest[2:]), request.args.get("recursive"))
        if rest[0] == "paths-info":
            wanted = request.form.getlist("paths") or (request.get_json(silent=True) or {}).get(
                "paths", []
            )
            return _json([_entry(path, found) for path in wanted if path in found.files])
        return Response("no such page", 404)

    def _repository(self, name: str, revision: str) -> Repository | Response:
        found = self.repositories.get(name)
        if found is None:
            return Response("no such repository", 404, headers={"X-Error-Code": "RepoNotFound"})
        if revision not in (found.commit, *found.names):
            return Response("no such one", 404, headers={"X-Error-Code": "RevisionNotFound"})
        return found

    def _tree(self, found: Repository, folder: str, recursive: str | None) -> Response:
        inside = f"{folder}/" if folder else ""
        paths = sorted(path for path in found.files if path.startswith(inside))
        if not paths:
            return Response("no such folder", 404, headers={"X-Error-Code": "EntryNotFound"})
        entries = {}
        for path in paths:
            name, slash, _ = path.removeprefix(inside).partition("/")
            entries[f"{inside}{name}"] = {"type": "directory", "path": f"{inside}{name}", "oid": ""}
            if not slash or recursive in ("true", "True", "1"):
                entries[path] = _entry(path, found)
        return _json(list(entries.values()))

    def _file(self, name: str, revision: str, path: str, request: Request) -> Response:
        found = self._repository(name, revision)
        if isinstance(found, Response):
            return found
        if path not in found.files:
            return Response("no such file", 404, headers={"X-Error-Code": "EntryNotFound"})
        data = found.files[path]
        response = Response(data, 200, content_type="application/octet-stream")
        response.headers["ETag"] = f'"{_oid(data)}"'
        response.headers["X-Repo-Commit"] = found.commit
        response.make_conditional(request, accept_ranges=True, complete_length=len(data))
        if request.method == "GET":
            self.sent += response.content_length or 0
        return response


def _entry(path: str, found: Repository) -> dict[str, Any]:
    data = found.files[path]
    return {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _cut(whole: Response, size: int) -> Response:
    """The beginning of an answer that says it is longer."""

    def body() -> Iterator[bytes]:
        yield whole.get_data()[:size]
        raise ConnectionResetError("cut by the test")

    headers = [(name, value) for name, value in whole.headers if name != "Content-Length"]
    headers.append(("Content-Length", str(len(whole.get_data()))))
    return Response(body(), whole.status, headers=headers)


def _json(content: Any) -> Response:
    return Response(json.dumps(content), 200, content_type="application/json")


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that serves until the block ends."""
    hub = Hub()
    with http_server(hub) as hub.url:
        yield hub
