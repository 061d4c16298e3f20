"""Service accounts: what a pod gets of its own, and the tokens that say who a pod is."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from standin import rbac
from standin.objects import ApiError, Object, Objects

# where a pod finds its token; clients have it built in
FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
VOLUME: Final = "kube-api-access-"
# seconds that a pod's token is asked for
_LIFETIME_S: Final = 3607
# the share of its life after which a kubelet asks for another
_RENEWED_AT: Final = 0.8


@dataclass(frozen=True)
class Token:
    """Who has it, and until when.

    Args:
        uids: of the account and of the pod; with either of them it ends.
        until: monotonic time.
    """

    user: rbac.User
    account: tuple[str, str]
    pod: tuple[str, str]
    uids: tuple[str, str]
    until: float


class Accounts:
    """Admission of pods, and tokens.

    Attributes:
        lifetime_s: seconds that a token is good for.
        address: host and port of the API as pods reach it.
        authority: certificate in PEM that they are to trust.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._tokens: dict[str, Token] = {}
        self.lifetime_s = float(_LIFETIME_S)
        self.address = ("", 0)
        self.authority = Path()

    def admit(self, pod: Object) -> None:
        """Gives a new pod its account, and the volume with its token unless that is not wanted.

        Raises:
            ApiError: 403, there is no such account.
        """
        spec, meta = pod["spec"], pod["metadata"]
        name = spec.setdefault("serviceAccountName", "default")
        try:
            account = self._objects.get("serviceaccounts", meta["namespace"], name)
        except ApiError as error:
            raise ApiError(
                403,
                "Forbidden",
                f'pods "{meta.get("name", "")}" is forbidden: error looking up service account '
                f"{meta['namespace']}/{name}: {error}",
            ) from None
        wish = spec.get("automountServiceAccountToken")
        if wish is None:
            wish = account.get("automountServiceAccountToken", True)
        if wish:
            _mount(spec)

    def issue(self, pod: Object) -> str:
        """A token of a pod's account, bound to the pod; a real one is a signed JSON web token."""
        meta, name = pod["metadata"], pod["spec"]["serviceAccountName"]
        space = meta["namespace"]
        account = self._objects.get("serviceaccounts", space, name)
        user = rbac.User(
            f"system:serviceaccount:{space}:{name}",
            ("system:serviceaccounts", f"system:serviceaccounts:{space}", "system:authenticated"),
        )
        head = _encoded({"alg": "RS256"})
        text = f"{head}.{_encoded({'sub': user.name})}.{secrets.token_urlsafe(48)}"
        uids = (account["metadata"]["uid"], meta["uid"])
        until = time.monotonic() + self.lifetime_s
        self._tokens[text] = Token(user, (space, name), (space, meta["name"]), uids, until)
        return text

    def user_of(self, text: str) -> rbac.User | None:
        """Whose token that is; None = nobody's, or it has expired, or its pod is gone."""
        found = self._tokens.get(text)
        if found is None or time.monotonic() > found.until:
            return None
        for plural, key, uid in zip(
            ("serviceaccounts", "pods"), (found.account, found.pod), found.uids, strict=True
        ):
            try:
                item = self._objects.get(plural, *key)
            except ApiError:
                return None
            if item["metadata"]["uid"] != uid:
                return None
        return found.user

    def expire(self) -> None:
        """The time of all tokens so far is over."""
        for text, token in self._tokens.items():
            self._tokens[text] = replace(token, until=0.0)

    def renewal(self) -> float:
        """When a token that is issued now is to be replaced, monotonic time."""
        return time.monotonic() + self.lifetime_s * _RENEWED_AT

    def files(self, pod: Object, volume: Object) -> dict[str, bytes]:
        """What a projected volume of a pod holds now, with a fresh token.

        Raises:
            ApiError: its account is gone, or it holds what the stand-in does not know.
        """
        found: dict[str, bytes] = {}
        for source in volume["projected"]["sources"]:
            if "serviceAccountToken" in source:
                found[source["serviceAccountToken"]["path"]] = self.issue(pod).encode()
            elif source.get("configMap", {}).get("name") == "kube-root-ca.crt":
                found["ca.crt"] = self.authority.read_bytes()
            elif "downwardAPI" in source:
                found["namespace"] = pod["metadata"]["namespace"].encode()
            else:
                raise ApiError(500, "Unknown", f"the stand-in knows no volume of {[*source]}")
        return found


def has_token(pod: Object) -> bool:
    """Whether a pod has the folder with its account's token."""
    (container,) = pod["spec"]["containers"]
    return any(mount["mountPath"] == FOLDER for mount in container.get("volumeMounts") or ())


def _mount(spec: Object) -> None:
    name = f"{VOLUME}{secrets.token_hex(3)[:5]}"
    field = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}
    ca = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": _LIFETIME_S, "path": "token"}},
        {"configMap": ca},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field}]}},
    ]
    projected = {"sources": sources, "defaultMode": 0o644}
    spec["volumes"] = [*(spec.get("volumes") or ()), {"name": name, "projected": projected}]
    for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
        mounts = container.get("volumeMounts") or []
        if all(mount["mountPath"] != FOLDER for mount in mounts):
            own = {"name": name, "mountPath": FOLDER, "readOnly": True}
            container["volumeMounts"] = [*mounts, own]


def _encoded(content: Mapping[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")
