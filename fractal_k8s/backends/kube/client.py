"""One cluster through the official client: plain dicts, a time limit and retries on every request.

The client's models are left aside: making them of a list of 10,000 pods takes a minute and a
gigabyte, reading the same list as JSON a page at a time seconds and 50 MB.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fractal_k8s.errors import ClusterError, ExistsError, ForbiddenError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient
    from urllib3 import BaseHTTPResponse

Object = dict[str, Any]

# what stands for a context where a pod asks its own cluster
IN_CLUSTER: Final = "in-cluster"

# seconds to connect, seconds between two pieces of an answer
_TIMEOUT: Final = (5.0, 30.0)
# a followed log is silent as long as its pod is
_FOLLOW_TIMEOUT: Final = (5.0, 3600.0)
_TRIES: Final = 5
_FIRST_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 8.0
# a person who waits longer for one request is told why
_QUIET_S: Final = 1.5
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
_PAGE: Final = 500
# what a kubelet answers, as if it were the log, for a container whose files are gone
_LOST_LOG: Final = "unable to retrieve container logs for "

_JSON: Final = "application/json"
_MERGE_PATCH: Final = "application/merge-patch+json"
# the answer holds an object's metadata and nothing else: of a Secret, never its values
_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@dataclass(frozen=True)
class Kind:
    """A kind of object and where the API has it."""

    plural: str
    base: str = "/api/v1"
    namespaced: bool = True

    @property
    def group(self) -> str:
        """API group, "" for the core."""
        return "" if self.base == "/api/v1" else self.base.split("/")[2]


JOBS: Final = Kind("jobs", "/apis/batch/v1")
CONFIG_MAPS: Final = Kind("configmaps")
PODS: Final = Kind("pods")
EVENTS: Final = Kind("events")
CLAIMS: Final = Kind("persistentvolumeclaims")
SECRETS: Final = Kind("secrets")
SERVICE_ACCOUNTS: Final = Kind("serviceaccounts")
NODES: Final = Kind("nodes", namespaced=False)
NAMESPACES: Final = Kind("namespaces", namespaced=False)
PRIORITY_CLASSES: Final = Kind("priorityclasses", "/apis/scheduling.k8s.io/v1", namespaced=False)
STORAGE_CLASSES: Final = Kind("storageclasses", "/apis/storage.k8s.io/v1", namespaced=False)
QUOTAS: Final = Kind("resourcequotas")
LIMIT_RANGES: Final = Kind("limitranges")
LOCAL_QUEUES: Final = Kind("localqueues", "/apis/kueue.x-k8s.io/v1beta1")
_REVIEWS: Final = Kind("selfsubjectaccessreviews", "/apis/authorization.k8s.io/v1", False)


class Cluster:
    """A cluster and a namespace of it. Every method may raise what `_request` raises."""

    def __init__(self, api: ApiClient, *, context: str, namespace: str) -> None:
        self.context = context
        self.namespace = namespace
        # gets a word when a request takes its time because the cluster does not answer
        self.tell: Callable[[str], None] = lambda text: None
        self._api = api
        self._readable: set[str] = set()  # paths that were read

    # --- objects ---

    def get(self, kind: Kind, name: str) -> Object | None:
        """An object, or None if there is none of that name."""
        return self._get(kind, name, _JSON)

    def metadata(self, kind: Kind, name: str) -> Object | None:
        """Only the metadata of an object, whose content never leaves the cluster; None = absent."""
        found = self._get(kind, name, _METADATA)
        return None if found is None else dict(found["metadata"])

    def _get(self, kind: Kind, name: str, accept: str) -> Object | None:
        try:
            return self._json("GET", f"{self._path(kind)}/{name}", accept=accept)
        except _MissingError:
            return None

    def list(
        self,
        kind: Kind,
        *,
        labels: str = "",
        fields: str = "",
        everywhere: bool = False,
        limit: int | None = None,
    ) -> Iterator[Object]:
        """Objects of a kind, read a page at a time.

        Args:
            labels: label selector. fields: field selector.
            everywhere: of all namespaces.
            limit: give no more than so many.

        Raises:
            ClusterError: also when the list was cut off because it took too long; read it again.
        """
        size = _PAGE if limit is None else min(_PAGE, limit)
        query = {"limit": str(size), "labelSelector": labels, "fieldSelector": fields}
        path = f"{kind.base}/{kind.plural}" if everywhere else self._path(kind)
        given = 0
        while True:
            page = self._json("GET", path, query={k: v for k, v in query.items() if v})
            for item in page.get("items") or []:
                yield item
                given += 1
                if given == limit:
                    return
            query["continue"] = page.get("metadata", {}).get("continue", "")
            if not query["continue"]:
                return

    def create(self, kind: Kind, body: Object) -> Object:
        """Creates an object.

        Raises:
            ExistsError: there is one of that name.
        """
        return self._json("POST", self._path(kind), body=body)

    def patch(self, kind: Kind, name: str, change: Object) -> Object:
        """Changes an object by a JSON merge patch."""
        return self._json("PATCH", f"{self._path(kind)}/{name}", body=change, sends=_MERGE_PATCH)

    def delete(
        self, kind: Kind, name: str, *, uid: str | None = None, version: str | None = None
    ) -> bool:
        """Deletes an object and, in the background, what belongs to it. False = it was gone.

        Args:
            uid: delete only the very object that has it.
            version: delete only if it still is at this resourceVersion.
        """
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        body["propagationPolicy"] = "Background"  # a Job's own default orphans its pods
        wanted = {"uid": uid, "resourceVersion": version}
        if given := {key: value for key, value in wanted.items() if value}:
            body["preconditions"] = given
        try:
            self._json("DELETE", f"{self._path(kind)}/{name}", body=body)
        except (_MissingError, _ConflictError):
            return False
        return True

    # --- pods ---

    def log(self, pod: str, *, tail: int | None = None, previous: bool = False) -> str:
        """What a pod has printed; "" if it has not started yet, or its node has lost the log."""
        try:
            got = self._request("GET", self._log_path(pod), query=_log_query(tail, previous))
            text = bytes(got.data).decode(errors="replace")
            return "" if text.startswith(_LOST_LOG) else text
        except _MissingError:
            raise ClusterError(f"pod {pod} is gone, and with it its log") from None
        except _RefusedError:  # a container that waits has no log
            return ""

    def follow(self, pod: str, *, tail: int | None = None) -> Iterator[str]:
        """Lines of a pod's log as they are printed, until it ends.

        Raises:
            ClusterError: also when the connection breaks on the way.
        """
        from urllib3.exceptions import HTTPError

        query = {**_log_query(tail, previous=False), "follow": "true"}
        path = self._log_path(pod)
        try:
            with self._request("GET", path, query=query, is_followed=True) as got:
                rest = b""
                for piece in got.stream(4096, decode_content=False):
                    *lines, rest = (rest + piece).split(b"\n")
                    yield from (line.decode(errors="replace") for line in lines)
                if rest:
                    yield rest.decode(errors="replace")
        except _MissingError:
            raise ClusterError(f"pod {pod} is gone, and with it its log") from None
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the log of pod {pod} broke off ({_reason(error)})") from None

    def _log_path(self, pod: str) -> str:
        return f"{self._path(PODS)}/{pod}/log"

    # --- rights ---

    def may(
        self,
        verb: str,
        kind: Kind,
        *,
        name: str = "",
        subresource: str = "",
        everywhere: bool = False,
    ) -> bool:
        """Whether whoever this is may do something, in the namespace if the kind has one.

        Args:
            everywhere: in all namespaces.
        """
        attributes = {
            "verb": verb,
            "group": kind.group,
            "resource": kind.plural,
            "subresource": subresource,
            "name": name,
            "namespace": self.namespace if kind.namespaced and not everywhere else "",
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {k: v for k, v in attributes.items() if v}},
        }
        answer = self._json("POST", self._path(_REVIEWS), body=review)
        return bool(answer.get("status", {}).get("allowed"))

    def version(self) -> str:
        """Such as "v1.34.2"."""
        return str(self._json("GET", "/version").get("gitVersion", "unknown"))

    # --- requests ---

    def _path(self, kind: Kind) -> str:
        inside = f"/namespaces/{self.namespace}" if kind.namespaced else ""
        return f"{kind.base}{inside}/{kind.plural}"

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        sends: str = _JSON,
        accept: str = _JSON,
    ) -> Object:
        headers = {"Accept": accept, "Content-Type": sends}
        answer = self._request(method, path, query=query, body=body, headers=headers)
        try:
            content: Object = json.loads(answer.data)
        except ValueError:  # of a proxy that wants a person to log in, say
            raise ClusterError(
                f"what answers for cluster {self.context!r} is no Kubernetes API; {self._probe}"
            ) from None
        return content

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        headers: dict[str, str] | None = None,
        is_followed: bool = False,
    ) -> BaseHTTPResponse:
        """One request, repeated while the trouble may pass. Its answer is whole.

        Args:
            is_followed: the answer has no end yet, and is left to the caller to read.

        Raises:
            ForbiddenError, ExistsError: see there.
            ClusterError: the cluster cannot be reached or refuses; says why.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        lost, told = False, False
        began = time.monotonic()
        for number in range(_TRIES):
            last = number == _TRIES - 1
            try:
                answer = self._call(
                    method, path, query or {}, body, headers or {"Accept": "*/*"}, is_followed
                )
                if not is_followed:
                    _ = answer.data  # kept by the answer; a connection may break until its end
                if method == "GET":
                    self._readable.add(path)
                return answer
            except ApiException as error:
                is_cut = not error.status and not _is_mistrusted(error)
                if is_cut and last:
                    raise self._silent(_first(str(error.reason).partition("\n")[2])) from None
                # an API server that has just started answers before it knows any Role
                starts = error.status == 403 and (lost or path in self._readable)
                may_pass = error.status in _RETRIED or (starts and method == "GET")
                if not is_cut and (last or not may_pass):
                    raise self._error(method, error, lost=lost) from None
                wait = _asked_wait(error)
                lost = lost or is_cut or error.status in (500, 502, 504)
            except (HTTPError, OSError) as error:
                if last:
                    raise self._silent(_reason(error)) from None
                wait, lost = None, True
            pause = wait or random.uniform(0.5, 1.0) * _wait(number)
            if not told and time.monotonic() - began + pause > _QUIET_S:
                told = True
                self.tell(f"cluster {self.context!r} does not answer, still trying ...")
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None,
        headers: dict[str, str],
        is_followed: bool,
    ) -> BaseHTTPResponse:
        """One request, once."""
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config.config_exception import ConfigException

        try:
            answer: BaseHTTPResponse = self._api.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params=dict(headers),
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=_FOLLOW_TIMEOUT if is_followed else _TIMEOUT,
            )
        except ConfigException as error:  # of a token that is being replaced
            raise OSError(str(error)) from None
        except AttributeError as error:
            # the client trips over its own exception where there was no answer to read
            if isinstance(error.__context__, ApiException):
                raise error.__context__ from None
            raise
        return answer

    def _silent(self, reason: str) -> ClusterError:
        return ClusterError(f"cluster {self.context!r} does not answer ({reason}); {self._probe}")

    @property
    def _probe(self) -> str:
        """What to look at where nothing useful answers."""
        if self.context == IN_CLUSTER:
            return "see whether a NetworkPolicy keeps this pod from the API server"
        return f"try: kubectl --context {self.context} get --raw /readyz"

    def _error(self, method: str, error: Any, *, lost: bool) -> ClusterError:
        said = _message(error)
        if not error.status:
            return ClusterError(
                f"cluster {self.context!r} does not prove who it is ({_first(said)}); check "
                "the certificate authority of its context"
            )
        if error.status == 401 and self.context == IN_CLUSTER:
            return ClusterError(
                "the cluster does not accept the token of this pod's account, which is read anew "
                "every minute; if that does not help, see whether the account is still there"
            )
        if error.status == 401:
            return ClusterError(
                f"cluster {self.context!r} does not accept the credentials of its context; "
                "log in again"
            )
        if error.status == 403:
            # the API server says so of what lies in a namespace; the rest is optional
            more = "; doctor says which rights are missing" * ("in the namespace" in said)
            return ForbiddenError(f"cluster {self.context!r}: {said}{more}")
        if error.status in (404, 410):
            return _MissingError(f"cluster {self.context!r}: {said}")
        if error.status == 409:
            if method == "POST":
                return ExistsError(said, perhaps_ours=lost)
            return _ConflictError(f"cluster {self.context!r}: {said}")
        return _RefusedError(f"cluster {self.context!r} refuses: {said}")


class _MissingError(ClusterError):
    """404 and 410."""


class _ConflictError(ClusterError):
    """409 of anything but a create."""


class _RefusedError(ClusterError):
    """400, 413, 415, 422: what was sent is wrong."""


def _log_query(tail: int | None, previous: bool) -> dict[str, str]:
    query = {} if tail is None else {"tailLines": str(tail)}
    return {**query, "previous": "true"} if previous else query


def _wait(number: int) -> float:
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 4.0**number)


def _asked_wait(error: Any) -> float | None:
    """The seconds that a Retry-After header asks for."""
    text = (error.headers or {}).get("Retry-After", "")
    return min(_LONGEST_WAIT_S, float(text)) if text.isdigit() else None


def _is_mistrusted(error: Any) -> bool:
    """Whether TLS failed because of a certificate. The client gives status 0 to all that fails in
    TLS, also to a connection that a restarting API or what stands before it has cut.
    """
    return "certificate" in str(error.reason).lower()


def _message(error: Any) -> str:
    """What a Status object says, else the HTTP reason."""
    try:
        said = json.loads(error.body or "{}").get("message")
    except (ValueError, AttributeError):
        said = None
    return str(said or error.reason or f"HTTP {error.status}")


def _first(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _reason(error: Exception) -> str:
    """The innermost cause in a few words."""
    inner = getattr(error, "reason", None) or error
    return str(inner).rpartition(": ")[2] or type(inner).__name__
