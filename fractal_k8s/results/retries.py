"""Requests to object storage: which trouble may pass, and what to say of the rest."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar, cast

from fractal_k8s.errors import UsageError

T = TypeVar("T")

# how long a request is tried in all, in seconds
VARIABLE: Final = "FRACTAL_K8S_STORE_SECONDS"
_SECONDS: Final = 30.0
# who does not answer at all is probably not there
_UNREACHED_SECONDS: Final = 5.0
# An answer may take so long to begin, and then comes no slower than this, or is given up: about
# what each of 32 readers has of a bad line.
_ANSWER_S: Final = 30.0
_LEAST_BYTES_PER_S: Final = 16 * 1024
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 5.0
# of a message that is shown
_MOST_CHARACTERS: Final = 300

_REFUSED: Final = (
    r"ACCESS_DENIED|AccessDenied|HTTP status 40[13]|HTTP response code: 40[13]|Forbidden"
    r"|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|INVALID_ACCESS_KEY|InvalidAccessKeyId"
    r"|INVALID_CLIENT|UNRECOGNIZED_CLIENT|credentials"
)
_EXPIRED: Final = r"Expired ?Token|EXPIRED_TOKEN|InvalidToken|TokenRefreshRequired|Token.*expired"
_SKEWED: Final = r"TIME_TOO_SKEWED|TimeTooSkewed"
_NO_BUCKET: Final = r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist|RESOURCE_NOT_FOUND"
_ELSEWHERE: Final = r"HTTP status 30[17]|PermanentRedirect|AuthorizationHeaderMalformed"
_NO_S3: Final = r"Failed to parse|HTTP (status|response code:) 405"
# Of codes that the client does not know, and of answers without a body, the status tells: whoever
# is told 408, 425 or 429 may come back.
_WRONG: Final = r"HTTP (status|response code:) 4(?!08|25|29)\d\d"

# (words of the error, cause and what to do); the first that fits
_FINAL: Final = tuple(
    (re.compile(words, re.IGNORECASE), said)
    for words, said in (
        (_EXPIRED, "the keys have expired; get new ones"),
        (_SKEWED, "this machine's clock differs from the server's; set it"),
        (_REFUSED, "access denied; check the credentials and their rights on the bucket"),
        (_NO_BUCKET, "no such bucket"),
        (_ELSEWHERE, "the bucket is in another region; give it with ?region="),
        (_NO_S3, "the endpoint does not speak S3; check its address and port"),
        (
            _WRONG,
            "the server refuses the request; check endpoint, region and whether the keys are over",
        ),
    )
)
_UNREACHED: Final = re.compile(
    r"curlCode: ([567]|35|60)\b|[Cc]ouldn't (connect|resolve)|Could not resolve", re.IGNORECASE
)
# the names of the object and of its bucket, which may be any words
_NAMES: Final = re.compile(r"(key|bucket|path|object) '[^']*'")


def tried(request: Callable[[], T]) -> T:
    """What a request gives, tried again with growing pauses until it works or time is up.

    Raises:
        OSError: trouble that does not pass. A missing object is not tried again.
    """
    began = time.monotonic()
    most = _most_seconds()
    wait = _FIRST_WAIT_S
    is_late = False
    while True:
        try:
            return request()
        except FileNotFoundError:
            raise
        except OSError as error:
            if isinstance(error, TimeoutError) and not is_late:
                is_late = True  # another connection may be faster, whatever time this one took
                continue
            text = _words(error)
            if any(words.search(text) for words, _ in _FINAL):
                raise
            limit = min(most, _UNREACHED_SECONDS) if _UNREACHED.search(text) else most
            # of everybody whom the server has told to wait, not all come back at once
            pause = wait * random.uniform(0.5, 1.5)
            if time.monotonic() - began + pause > limit:
                raise
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT_S)


class Deadline:
    """When who reads gives up; later the more there is to read."""

    def __init__(self, seconds: float | None = None) -> None:
        self.at = time.monotonic() + (_ANSWER_S if seconds is None else seconds)

    def allow(self, num_bytes: int) -> None:
        """From now on, time for so many bytes."""
        self.at = time.monotonic() + _ANSWER_S + num_bytes / _LEAST_BYTES_PER_S


def in_time(request: Callable[[Deadline], T], deadline: Deadline) -> T:
    """What a request that changes nothing gives, unless that takes too long.

    The client has no deadline of its own for an answer of which a byte comes now and then. Such a
    request is left to itself, in a thread that ends with the process; until it has ended, pyarrow
    opens no other store.

    Raises:
        TimeoutError: nothing came in time. Whatever else the request raises.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((request(deadline), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    while (left := deadline.at - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            value, error = answers.get(timeout=left)
            if error is not None:
                raise error
            return cast("T", value)
    raise TimeoutError("the server's answer comes too slowly")


def told(error: OSError) -> str:
    """An error of the file system as cause and next step."""
    words_of_error = _words(error)
    text = " ".join(str(error).split())[:_MOST_CHARACTERS]
    for words, said in _FINAL:
        if words.search(words_of_error):
            return f"{said} ({text})"
    if _UNREACHED.search(words_of_error):
        return f"the server cannot be reached; check the endpoint and the network ({text})"
    return f"{text}; the trouble may pass: try again later"


def is_refused(error: OSError) -> bool:
    """Whether a server has understood a request and does not allow it."""
    return re.search(_REFUSED, _words(error), re.IGNORECASE) is not None


def _words(error: OSError) -> str:
    """What the client says, without the names of objects and buckets."""
    return _NAMES.sub(r"\1", str(error))


def _most_seconds() -> float:
    """
    Raises:
        UsageError: the variable is set to something else than a number.
    """
    given = os.environ.get(VARIABLE, str(_SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UsageError(f"{VARIABLE} must be a number of seconds, got {given!r}")
    return seconds
