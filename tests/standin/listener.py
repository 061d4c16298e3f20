"""HTTPS on a port of this machine that can go away and come back."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from standin.certificates import Certificates, make_certificates

_HOST = "127.0.0.1"


class Listener:
    """Serves a WSGI application; a connection is closed after each answer."""

    def __init__(self, application: Any, folder: Path) -> None:
        self.certificates: Certificates = make_certificates(folder)
        self._application = application
        self._port = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return _HOST, self._port

    @property
    def url(self) -> str:
        return f"https://{_HOST}:{self._port}"

    def up(self) -> None:
        """Begins to listen; after `down`, on the same port."""
        if self._server is not None:
            return
        server = _Server(self._port, self._application, self.certificates)
        self._server, self._port = server, server.port
        # how long `down` may take, seconds
        serve = threading.Thread(target=server.serve_forever, args=(0.05,), name="api-server")
        self._thread = serve
        serve.start()

    def down(self) -> None:
        """Refuses connections and breaks those that are open."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.break_connections()
        self._server = None


class _Handler(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Nothing: what clients do is in the tests' hands, errors are in the answers."""

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        """The application raised a ConnectionError: the client gets no further word."""
        self.close_connection = True


class _Server(ThreadedWSGIServer):
    # kubectl and pools of clients connect in bursts
    request_queue_size = 128

    def __init__(self, port: int, application: Any, certificates: Certificates) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(_HOST, port, application, _Handler, ssl_context=certificates.context())
        # a client that connects and says nothing holds up its own thread, not the others
        self.socket.do_handshake_on_connect = False

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that went away is no trouble of the server."""

    def break_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
