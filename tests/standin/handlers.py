"""What each verb does with the stored objects."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final

from werkzeug.wrappers import Response

from standin import defaults, patching, rbac, reviews, validation, watching
from standin.accounts import Accounts
from standin.answers import as_json, from_token, in_form, list_in_form, to_token
from standin.deletion import delete_owner, is_due
from standin.logs import PodHost, pod_log
from standin.objects import ApiError, Object, Objects, exists
from standin.requests import Asked
from standin.target import REVIEWS, not_found

_DELETE_FIELDS: Final = ("propagationPolicy", "gracePeriodSeconds", "dryRun", "orphanDependents")
_PROPAGATIONS: Final = ("Foreground", "Background", "Orphan")

# gets the plural of a kind and a new object of it
Webhook = Callable[[str, Object], None]


class Handlers:
    """The verbs, over a store.

    Args:
        accounts: gives new pods their account.
        webhooks: each is asked about every new object, and may change it or refuse it.
        host: what runs pods; None = pods are objects and nothing more.
        broken: tells a watch or a log whether the server has gone away since it began.
    """

    def __init__(
        self,
        objects: Objects,
        accounts: Accounts,
        webhooks: list[Webhook],
        host: PodHost | None,
        broken: Callable[[], Callable[[], bool]],
    ) -> None:
        self._objects = objects
        self._accounts = accounts
        self._webhooks = webhooks
        self._host = host
        self._broken = broken

    def answer(self, asked: Asked) -> Response:
        """Raises:
        ApiError: whatever the answer is, if it is not what was asked for.
        """
        target = asked.target
        if target.plural in REVIEWS:
            return as_json(reviews.review(self._objects, asked.user, target, asked.object()), 201)
        if target.subresource == "log" and target.plural == "pods" and target.verb == "get":
            return pod_log(self._objects, self._host, asked, self._broken())
        if target.subresource == "eviction" and target.plural == "pods" and self._host:
            return self._evicted(self._host, asked)
        if target.subresource not in ("", "status"):
            raise not_found()
        handle: Callable[[Asked], Response] | None = getattr(self, f"_{target.verb}", None)
        if handle is None:
            raise ApiError(405, "MethodNotAllowed", "the server does not allow this method")
        return handle(asked)

    # --- reading ---

    def _get(self, asked: Asked) -> Response:
        target = asked.target
        found = self._objects.get(target.plural, target.namespace, target.name)
        return as_json(in_form(target.resource, found, asked.form))

    def _list(self, asked: Asked) -> Response:
        target, limit, token = asked.target, asked.number("limit"), asked.text("continue")
        after = ("", "")
        with self._objects.changed:
            version = self._objects.version
            if token:
                version, after = from_token(token)
            if not self._objects.remembers(version):
                raise ApiError(
                    410,
                    "Expired",
                    "The provided continue parameter is too old to display a consistent list "
                    "result. You can start a new list without the continue parameter.",
                )
            known = self._objects.peek(target.plural, target.namespace, after)
        meta: Object = {"resourceVersion": str(version)}
        page: list[Object] = []
        for number, item in enumerate(known):
            if not asked.selects(item):
                continue
            if limit and len(page) == limit:
                meta["continue"] = to_token(version, page[-1])
                if not (asked.text("labelSelector") or asked.text("fieldSelector")):
                    meta["remainingItemCount"] = len(known) - number
                break
            page.append(item)
        return as_json(list_in_form(target.resource, page, meta, asked.form))

    def _watch(self, asked: Asked) -> Response:
        lines = watching.events(self._objects, asked, self._broken())
        return Response(lines, content_type="application/json")

    # --- writing ---

    def _create(self, asked: Asked) -> Response:
        return self._created(asked, asked.object())

    def _evicted(self, host: PodHost, asked: Asked) -> Response:
        """Evicts a pod, as `kubectl drain` does with every pod of a node."""
        target, given = asked.target, asked.object()
        if target.verb != "create":
            raise ApiError(405, "MethodNotAllowed", "the server does not allow this method")
        if given.get("kind", "Eviction") != "Eviction":
            raise ApiError(400, "BadRequest", "the body is no Eviction")
        host.evict(target.namespace, target.name)
        return as_json({"kind": "Status", "apiVersion": "v1", "status": "Success"}, 201)

    def _created(self, asked: Asked, item: Object) -> Response:
        target, plural = asked.target, asked.target.plural
        meta = self._placed(asked, item)
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = f"{meta['generateName'][:58]}{uuid.uuid4().hex[:5]}"
        validation.check_schema(target.resource, item)
        defaults.fill(plural, item)
        if target.resource.namespaced:
            self._check_namespace(target.namespace)
        for webhook in self._webhooks:
            webhook(plural, item)
        if plural == "pods":
            self._accounts.admit(item)
        validation.check_rules(target.resource, item)
        if asked.is_dry:
            if self._has(plural, target.namespace, meta["name"]):
                raise exists(plural, meta["name"])
            made = {**item, "metadata": {**meta, "creationTimestamp": None}}
        else:
            made = self._objects.create(plural, item)
        return as_json(in_form(target.resource, made, asked.form), 201)

    def _update(self, asked: Asked) -> Response:
        target = asked.target
        given = asked.object()
        self._placed(asked, given)
        with self._objects.changed:
            old = self._objects.get(target.plural, target.namespace, target.name)
            return self._replaced(asked, old, given)

    def _patch(self, asked: Asked) -> Response:
        target, kind = asked.target, asked.content_type
        patch = patching.read_patch(kind, asked.body)
        if kind == patching.APPLY and not asked.text("fieldManager"):
            raise validation.invalid_options(
                "PatchOptions", "fieldManager: Required value: is required for apply patch"
            )
        with self._objects.changed:
            try:
                old = self._objects.get(target.plural, target.namespace, target.name)
            except ApiError:
                if kind != patching.APPLY:
                    raise
                rbac.check(self._objects, asked.user, target.as_create())
                return self._created(asked, patch)
            new = patching.patched(kind, old, patch)
            self._placed(asked, new)
            return self._replaced(asked, old, new)

    def _replaced(self, asked: Asked, old: Object, given: Object) -> Response:
        """Stores what an object becomes; the caller holds the lock."""
        target = asked.target
        old = {"kind": target.resource.kind, "apiVersion": target.resource.api_version, **old}
        if target.subresource == "status":
            new = {**old, "status": given.get("status") or {}}
        else:
            new = {**given}
            if target.plural in ("jobs", "pods"):  # only /status changes the status
                new["status"] = old.get("status") or {}
        meta = {**given["metadata"], "creationTimestamp": old["metadata"]["creationTimestamp"]}
        uid = old["metadata"]["uid"]
        _check_preconditions(old, {"uid": meta.setdefault("uid", uid)})
        if target.plural == "jobs":
            changed = new.get("spec") != old.get("spec")
            meta["generation"] = old["metadata"].get("generation", 1) + changed
        new["metadata"] = meta
        validation.check_schema(target.resource, new)
        validation.check_rules(target.resource, new, old)
        made = new if asked.is_dry else self._objects.update(target.plural, new)
        if is_due(made) and not asked.is_dry:  # its last finalizer has been removed
            self._objects.delete(target.plural, target.namespace, target.name)
        return as_json(in_form(target.resource, made, asked.form))

    def _placed(self, asked: Asked, item: Object) -> Object:
        """The metadata of an object in a body, which must agree with the path."""
        meta: Object = item.setdefault("metadata", {})
        target = asked.target
        if target.resource.namespaced and meta.setdefault("namespace", target.namespace) != (
            target.namespace
        ):
            raise ApiError(
                400,
                "BadRequest",
                "the namespace of the provided object does not match the namespace sent on the "
                "request",
            )
        if target.name and meta.setdefault("name", target.name) != target.name:
            raise ApiError(
                400,
                "BadRequest",
                f"the name of the object ({meta['name']}) does not match the name on the URL "
                f"({target.name})",
            )
        return meta

    def _has(self, plural: str, namespace: str, name: str) -> bool:
        try:
            self._objects.get(plural, namespace, name)
        except ApiError:
            return False
        return True

    def _check_namespace(self, name: str) -> None:
        self._objects.get("namespaces", "", name)

    # --- deleting ---

    def _delete(self, asked: Asked) -> Response:
        options = _delete_options(asked)
        target = asked.target
        with self._objects.changed:
            found = self._objects.get(target.plural, target.namespace, target.name)
            _check_preconditions(found, options["preconditions"])
            if not options["dry"]:
                last = self._removed(target.plural, found, options)
        if target.plural == "pods" and not options["dry"]:
            return as_json(in_form(target.resource, last, asked.form))
        details = {
            "name": target.name,
            "group": target.resource.group,
            "kind": target.plural,
            "uid": found["metadata"]["uid"],
        }
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return as_json({**status, "details": details})

    def _deletecollection(self, asked: Asked) -> Response:
        target, options = asked.target, _delete_options(asked)
        with self._objects.changed:
            found = [
                item
                for item in self._objects.list(target.plural, target.namespace)
                if asked.selects(item)
            ]
            for item in found if not options["dry"] else ():
                self._removed(target.plural, item, options)
        return as_json(list_in_form(target.resource, found, {"resourceVersion": ""}, asked.form))

    def _removed(self, plural: str, item: Object, options: dict[str, Any]) -> Object:
        """Removes an object. A pod that a host runs gets its grace, and goes later."""
        namespace, name = item["metadata"].get("namespace", ""), item["metadata"]["name"]
        if plural == "pods" and self._host is not None:
            return self._host.delete_pod(namespace, name, options["grace"])
        # a Job's own default, unlike that of other kinds, leaves its pods behind
        policy = options["policy"] or ("Orphan" if plural == "jobs" else "Background")
        if policy == "Foreground" and self._host is None:
            policy = "Background"  # nobody is there to tell when the last pod has gone
        return delete_owner(self._objects, plural, namespace, name, policy)


def _delete_options(asked: Asked) -> dict[str, Any]:
    """Options from the body, else from the query, as both are allowed."""
    body = asked.object() if asked.body else {}
    given = {name: asked.text(name) for name in _DELETE_FIELDS if asked.text(name)} | body
    orphans = str(given.get("orphanDependents", "")).lower() == "true"
    grace, policy = given.get("gracePeriodSeconds"), given.get("propagationPolicy")
    if policy and policy not in _PROPAGATIONS:
        known = ", ".join(f'"{name}"' for name in (*_PROPAGATIONS, "nil"))
        raise validation.invalid_options(
            "DeleteOptions",
            f'propagationPolicy: Unsupported value: "{policy}": supported values: {known}',
        )
    return {
        "policy": policy or ("Orphan" if orphans else ""),
        "grace": None if grace is None else int(grace),
        "dry": bool(given.get("dryRun")),
        "preconditions": body.get("preconditions") or {},
    }


def _check_preconditions(item: Object, preconditions: Object) -> None:
    for field, wanted in preconditions.items():
        found = item["metadata"].get(field)
        if wanted != found:
            label = "UID" if field == "uid" else "ResourceVersion"
            raise ApiError(
                409,
                "Conflict",
                f"Precondition failed: {label} in precondition: {wanted}, {label} in object meta: "
                f"{found}",
            )
