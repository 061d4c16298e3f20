"""An HTTP proxy in front of an S3 server that makes trouble on purpose.

It speaks HTTP/1.1, one connection a thread, and hands requests on as they come. Before each it asks
its faults, in order, whether they want that request; a fault is used up after `count` of them.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from standin.serving import running

# kind of a fault -> status and S3's code for it
ANSWERS = {
    "slow down": (503, "SlowDown"),
    "too many": (429, "TooManyRequests"),
    "denied": (403, "AccessDenied"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "expired": (400, "ExpiredToken"),
    "elsewhere": (400, "AuthorizationHeaderMalformed"),
    "no bucket": (404, "NoSuchBucket"),
    "error": (500, ""),
}


@dataclass
class Fault:
    """Trouble for some requests.

    Args:
        kind: one of ANSWERS, or `hello` (200, a web page), `reset` (before any answer), `cut` (in
            the middle of the answer's body), `slow` (the answer takes a second), `drip` (its body
            comes byte by byte, five a second), `empty` (an answer without its body).
        count: how many requests meet it.
        method: of the requests, or any; path: a part of their path.
        share: probability of each.
    """

    kind: str
    count: int = 1
    method: str = ""
    path: str = ""
    share: float = 1.0


class FaultyProxy:
    """A proxy from `with` to the end of it; `url` is where clients go."""

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.faults: list[Fault] = []
        # kinds of the faults that requests have met, in order
        self.met: list[str] = []
        # entries of a listing that are told at once; None = as many as the client asks for
        self.page: int | None = None
        # seconds after which an answer that drips is broken off
        self.drip_s = 6.0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        self._running = running(server)

    def __enter__(self) -> Self:
        self._running.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running.__exit__(kind, error, trace)

    def plan(self, method: str, path: str) -> str:
        """The kind of the fault that this request meets, or ""."""
        with self._lock:
            for fault in self.faults:
                if fault.count <= 0 or fault.method not in ("", method) or fault.path not in path:
                    continue
                if self._random.random() < fault.share:
                    fault.count -= 1
                    self.met.append(fault.kind)
                    return fault.kind
        return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultyProxy

    def log_message(self, *arguments: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self._body()
        kind = self.owner.plan(self.command, self.path)
        if kind == "reset":
            self._reset()
            return
        if kind in ANSWERS:
            self._answer(*_refusal(*ANSWERS[kind], self.command))
            return
        if kind == "hello":
            self._answer(200, {"Content-Type": "text/html"}, b"<html>Hello</html>")
            return
        status, headers, data = self._upstream(body)
        if kind == "slow":
            time.sleep(1.0)
        if kind == "drip":
            self._drip(status, headers, data)
            return
        self._answer(status, headers, b"" if kind == "empty" else data, cut=kind == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815  # names of the class

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.owner.upstream, timeout=30)
        skipped = {"transfer-encoding", "connection", "content-length", "expect"}
        headers = {key: value for key, value in self.headers.items() if key.lower() not in skipped}
        headers["Content-Length"] = str(len(body))
        path = self.path
        if self.owner.page is not None:
            path = path.replace("max-keys=1000", f"max-keys={self.owner.page}")
        connection.request(self.command, path, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        found = {key: value for key, value in answer.getheaders() if key.lower() not in skipped}
        if self.command == "HEAD":
            found["Content-Length"] = answer.getheader("Content-Length") or "0"
        connection.close()
        return answer.status, found, data

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self._reset()
            return
        self.wfile.write(data)

    def _drip(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self._answer(status, {**headers, "Content-Length": str(len(data))}, b"")
        ends = time.monotonic() + self.owner.drip_s
        with contextlib.suppress(OSError):  # the client has gone
            for byte in data:
                if time.monotonic() > ends:
                    break
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.2)
        self.close_connection = True

    def _reset(self) -> None:
        """Breaks the connection off as a crash does: the peer is sent an RST."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()


def _refusal(status: int, code: str, method: str) -> tuple[int, dict[str, str], bytes]:
    """An answer as S3 gives it: HEAD has no body to say why."""
    if method == "HEAD":
        return status, {"Content-Length": "0"}, b""
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>said</Message></Error>'
    return status, {}, text.encode() if code else b""
