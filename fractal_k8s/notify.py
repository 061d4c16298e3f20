"""A message to a chat when a sweep ends or goes wrong: one POST of JSON, as Slack takes it.

The address is a secret, since who knows it may write there: it comes from the environment alone and
stands in no message. Trouble with it stops nothing.
"""

from __future__ import annotations

import contextlib
import email.utils
import html
import http.client
import json
import os
import socket
import time
import urllib.error
import urllib.request
from typing import Final

from fractal_k8s.environ import WEBHOOK_VARIABLE

_SECONDS: Final = 10.0
_TRIES: Final = 2
# of a server that wants to be left alone for a while; a longer one is for the next pass
_MOST_PAUSE_S: Final = 30.0


def is_wanted() -> bool:
    """Whether there is an address to send messages to."""
    return bool(os.environ.get(WEBHOOK_VARIABLE))


def send(text: str, *, seconds: float = _SECONDS) -> str | None:
    """Sends a message; returns why it could not be sent, without the address, or None.

    Args:
        seconds: how long the server may take to answer each of two tries.
    """
    url = os.environ.get(WEBHOOK_VARIABLE, "").strip()
    if not url.lower().startswith(("http://", "https://")):
        return f"{WEBHOOK_VARIABLE} is no http:// or https:// address"
    # Slack takes these three characters for markup
    data = json.dumps({"text": html.escape(text, quote=False)}).encode()
    reason = ""
    for left in reversed(range(_TRIES)):
        try:
            request = urllib.request.Request(
                url, data=data, headers={"Content-Type": "application/json"}, method="POST"
            )
            with _OPENER.open(request, timeout=seconds):
                return None
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code}"
            pause = _pause(error)
            error.close()
            if pause is None or not left:
                break
            if pause > _MOST_PAUSE_S:
                return f"{reason} and wants to be asked again in {pause:,.0f} s"
            time.sleep(pause)
        except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
            reason = _reason(error)
    return reason


def _pause(error: urllib.error.HTTPError) -> float | None:
    """Seconds after which a server may be asked again; None where that is of no use."""
    if error.code != http.HTTPStatus.TOO_MANY_REQUESTS and error.code < 500:
        return None
    wanted = error.headers.get("Retry-After", "").strip()
    if wanted.isdecimal():
        return float(wanted)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(wanted).timestamp() - time.time())
    return 1.0 if error.code < 500 else 0.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A message goes where it was meant to go, and nowhere else."""

    def redirect_request(self, *arguments: object) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(_NoRedirect)


def _reason(error: Exception) -> str:
    """The kind of an error; its text may quote the address."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, (TimeoutError, socket.timeout)):
        return "no answer in time"
    if isinstance(cause, socket.gaierror):
        return "its host is not known"
    if isinstance(cause, ConnectionRefusedError):
        return "the connection was refused"
    return f"{type(cause).__name__}"
