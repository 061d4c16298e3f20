"""An API server small enough to read, that the official client and kubectl both accept.

It speaks JSON and YAML over TLS. It speaks no protobuf: a body in it is answered 415, so those
subcommands of kubectl that send one (`kubectl create configmap`) do not work here.

What it does not do: ownership of fields in server-side apply, finalizers, quotas, exec and
port-forward. It was written by the same hands as the package it tests, and shares their
misreadings. Its answers were compared with those of Kubernetes 1.36.2, where tests/cluster passed
too; what is new here says little until that has been done again.
"""

from __future__ import annotations

import secrets
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from werkzeug.wrappers import Request, Response

from standin import discovery, rbac
from standin.accounts import Accounts
from standin.answers import as_json, as_status
from standin.handlers import Handlers, Webhook
from standin.listener import Listener
from standin.logs import PodHost
from standin.objects import ApiError, Objects
from standin.requests import Asked, Call
from standin.selectors import name_in_fields
from standin.target import Target, find_target, not_found

_REASONS = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


@dataclass(frozen=True)
class Fault:
    """Trouble for one request: an error, or a connection that is lost."""

    code: int | None = 500  # None = the connection is lost
    retry_after: int | None = None  # seconds
    done: bool = False  # whether the server does as it was asked before
    verb: str | None = None  # only requests with this verb meet it
    resource: str | None = None  # only requests for these objects, such as "jobs", meet it

    def fits(self, call: Call) -> bool:
        return self.verb in (None, call.verb) and self.resource in (None, call.resource)


class ApiServer:
    """Serves a store.

    Args:
        folder: where certificates go.
        accounts: whose tokens pods show.
        host: what runs the pods, for logs and deletes.

    Attributes:
        webhooks: see `Handlers`; those of a real cluster are admission webhooks that mutate.
        requests: every request since the start, in order.
        faults: each is met by the next request it fits.
        errors: tracebacks of what went wrong in here; empty unless the stand-in is broken.
    """

    def __init__(
        self, objects: Objects, folder: Path, accounts: Accounts, *, host: PodHost | None = None
    ) -> None:
        self.requests: list[Call] = []
        self.faults: deque[Fault] = deque()
        self.errors: list[str] = []
        self._objects = objects
        self._users: dict[str, rbac.User] = {}
        self._lock = threading.Lock()
        self._times_down = 0
        self.webhooks: list[Webhook] = []
        self._accounts = accounts
        self._handlers = Handlers(objects, accounts, self.webhooks, host, self._breaks)
        self._listener = Listener(self, folder)

    @property
    def url(self) -> str:
        return self._listener.url

    @property
    def authority(self) -> Path:
        """Certificate in PEM that clients are to trust."""
        return self._listener.certificates.authority

    def add_user(self, name: str, *groups: str) -> str:
        """Makes a user known and returns the bearer token."""
        token = secrets.token_urlsafe(24)
        self._users[token] = rbac.User(name, ("system:authenticated", *groups))
        return token

    def up(self) -> None:
        self._listener.up()
        self._accounts.address = self._listener.address
        self._accounts.authority = self.authority

    def down(self) -> None:
        """Connections are refused, and open watches and logs break."""
        self._times_down += 1
        with self._objects.changed:
            self._objects.changed.notify_all()
        self._listener.down()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """The WSGI application."""
        request = Request(environ)
        # what is left unread when a connection is closed may cost the client the answer
        request.get_data()
        try:
            answer = self._answer(request)
        except ApiError as error:
            answer = as_status(error)
        except ConnectionError:
            raise
        except Exception as error:
            self.errors.append(traceback.format_exc())
            answer = as_status(ApiError(500, "InternalError", f"stand-in: {error!r}"))
        return answer(environ, start)

    def _breaks(self) -> Callable[[], bool]:
        began = self._times_down
        return lambda: self._times_down != began

    def _answer(self, request: Request) -> Response:
        user = self._user(request)
        target = self._target(request)
        call = Call(
            user.name if user else "",
            target.verb if target else request.method.lower(),
            target.full_plural if target else "",
            request.path,
        )
        with self._lock:
            self.requests.append(call)
            fault = next((f for f in self.faults if f.fits(call)), None)
            if fault is not None:
                self.faults.remove(fault)
        if fault is None or fault.done:
            answer = self._done(request, user, target)
        if fault is None:
            return answer
        if fault.code is None:
            raise ConnectionResetError("a fault")
        error = ApiError(fault.code, _REASONS.get(fault.code, ""), "a fault of the stand-in")
        return as_status(error, fault.retry_after)

    def _done(self, request: Request, user: rbac.User | None, target: Target | None) -> Response:
        if user is None:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        if target is None:
            found = discovery.answer(request.path)
            if found is None:
                raise not_found()
            return as_json(found) if isinstance(found, dict) else Response(found)
        rbac.check(self._objects, user, target)
        return self._handlers.answer(Asked(user, target, request))

    def _user(self, request: Request) -> rbac.User | None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer":
            return None
        return self._users.get(token.strip()) or self._accounts.user_of(token.strip())

    @staticmethod
    def _target(request: Request) -> Target | None:
        """The resource a request is for; None = a path of the API itself."""
        parts = request.path.strip("/").split("/")
        if not (parts[:2] == ["api", "v1"] and len(parts) > 2) and not (
            parts[0] == "apis" and len(parts) > 3
        ):
            return None
        watch = request.args.get("watch", "").lower() in ("true", "1")
        return find_target(
            request.method,
            request.path,
            watch=watch,
            selected=name_in_fields(request.args.get("fieldSelector", "")),
        )
