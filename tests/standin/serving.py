"""Servers of plain HTTP on a port of this machine, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from http.server import HTTPServer
from typing import Any, Final

from werkzeug.serving import make_server

# how soon a server sees that it is to end
_POLL_S: Final = 0.02


@contextlib.contextmanager
def running(server: HTTPServer) -> Iterator[str]:
    """The address of a server, which answers in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def http_server(application: Any) -> contextlib.AbstractContextManager[str]:
    """The address at which a WSGI application answers."""
    return running(make_server("127.0.0.1", 0, application, threaded=True))


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The address of an empty S3 server, which checks no key."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # thousands of requests
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    try:
        host, port = running.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        running.stop()
