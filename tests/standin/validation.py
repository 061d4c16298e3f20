"""What an object must be like to be stored: the schema of its kind, then the rules beyond it.

Fields are always checked strictly, also where a client asks a real cluster for no more than a
warning.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Final

import kubernetes_validate.utils as schemas
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing import Resource as Schema

from standin import job_rules
from standin.objects import ApiError, Object, Resource

_SCHEMAS: Final = "1.36"
_CONFIG_MAP_BYTES: Final = 1_048_576
_ANNOTATION_BYTES: Final = 262_144
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_CONFIG_KEY: Final = re.compile(r"[-._A-Za-z0-9]{1,253}")
_UNKNOWN: Final = re.compile(r"'([^']+)'")


def check_rules(resource: Resource, item: Object, old: Object | None = None) -> None:
    """Checks an object that is to be created, or that is to replace another.

    Raises:
        ApiError: 422 with every problem.
    """
    problems = _metadata(item["metadata"])
    if resource.plural == "configmaps":
        problems += _config_map(item, old)
    elif resource.plural == "jobs":
        problems += job_rules.update(item, old) if old else job_rules.create(item)
    elif resource.plural == "persistentvolumeclaims":
        problems += _claim(item["spec"])
    if problems:
        raise _invalid(resource, item, problems)


def invalid_options(kind: str, problem: str) -> ApiError:
    """The answer to options of a request with a problem, "FIELD: what about it"."""
    return _invalid(Resource(kind.lower(), kind, "meta.k8s.io/v1"), {}, [problem])


def _invalid(resource: Resource, item: Object, problems: list[str]) -> ApiError:
    """The answer to an object with problems, each "FIELD: what about it"."""
    said = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
    name = item.get("metadata", {}).get("name", "")
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    causes = [problem.partition(": ")[::2] for problem in problems]
    return ApiError(
        422,
        "Invalid",
        f'{kind} "{name}" is invalid: {said}',
        {
            "name": name,
            "group": resource.group,
            "kind": resource.kind,
            "causes": [{"field": field, "message": message} for field, message in causes],
        },
    )


def check_schema(resource: Resource, item: Object) -> None:
    """Raises:
    ApiError: 400 for a field that is unknown or of the wrong type, 422 for one that is missing.
    """
    kind, said = item.get("kind"), item.get("apiVersion")
    if (kind, said) != (resource.kind, resource.api_version):
        raise ApiError(
            400,
            "BadRequest",
            f"the object provided is {said} {kind}, expected {resource.api_version} "
            f"{resource.kind}",
        )
    errors = sorted(_validator(resource).iter_errors(item), key=lambda error: error.json_path)
    if not errors:
        return
    missing = [error for error in errors if error.validator == "required"]
    if missing == errors:
        raise _invalid(resource, item, [f"{_path(error)}: {error.message}" for error in missing])
    told = ", ".join(_readable(error) for error in errors if error not in missing)
    version = resource.api_version.rpartition("/")[2]
    raise ApiError(
        400,
        "BadRequest",
        f'{resource.kind} in version "{version}" cannot be handled as a {resource.kind}: '
        f"strict decoding error: {told}",
    )


@functools.cache
def _validator(resource: Resource) -> Draft202012Validator:
    version = next(name for name in schemas.all_versions() if schemas.major_minor(name) == _SCHEMAS)
    group = resource.group.split(".")[0]
    file = "-".join([resource.kind.lower(), *([group] if group else []), "v1"])
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    own = schemas.schema_contents(f"{folder}/{file}.json", version)
    registry: Registry[Any] = Schema.from_contents(own) @ Registry()
    return Draft202012Validator(own, registry=_definitions(folder, version) @ registry)


@functools.cache
def _definitions(folder: str, version: str) -> Schema[Any]:
    return Schema.from_contents(schemas.schema_contents(f"{folder}/_definitions.json", version))


def _readable(error: ValidationError) -> str:
    if error.validator == "additionalProperties":
        unknown = _UNKNOWN.findall(error.message.partition("(")[2])
        where = f"{_path(error)}." if error.path else ""
        return ", ".join(f'unknown field "{where}{name}"' for name in unknown)
    return f"{_path(error)}: {error.message}"


def _path(error: ValidationError) -> str:
    text = ""
    for part in error.absolute_path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text


def _metadata(meta: Object) -> list[str]:
    problems = []
    name = meta.get("name", "")
    if len(name) > 253 or not _NAME.fullmatch(name):
        problems.append(
            f'metadata.name: Invalid value: "{name}": a lowercase RFC 1123 subdomain must consist '
            "of lower case alphanumeric characters, '-' or '.', and must start and end with an "
            "alphanumeric character"
        )
    problems += check_labels(meta.get("labels") or {}, "metadata.labels")
    problems += [
        f"metadata.ownerReferences[{number}].{field}: Required value: must not be empty"
        for number, owner in enumerate(meta.get("ownerReferences") or [])
        for field in ("name", "uid")
        if not owner[field]
    ]
    notes = meta.get("annotations") or {}
    if sum(len(f"{key}{value}".encode()) for key, value in notes.items()) > _ANNOTATION_BYTES:
        problems.append("metadata.annotations: Too long: may not be more than 262144 bytes")
    return problems


def check_labels(labels: dict[str, str], field: str) -> list[str]:
    """Problems of label keys and values."""
    problems = []
    for key, value in labels.items():
        prefix, _, short = key.rpartition("/")
        if len(short) > 63 or not _LABEL_NAME.fullmatch(short) or len(prefix) > 253:
            problems.append(f'{field}: Invalid value: "{key}": name part must be a label name')
        if value and (len(value) > 63 or not _LABEL_NAME.fullmatch(value)):
            problems.append(
                f'{field}: Invalid value: "{value}": a valid label must be an empty string or '
                "consist of alphanumeric characters, '-', '_' or '.', and must start and end with "
                "an alphanumeric character, at most 63 of them"
            )
    return problems


def _claim(spec: Object) -> list[str]:
    asked = (spec.get("resources") or {}).get("requests") or {}
    return [] if "storage" in asked else ["spec.resources[storage]: Required value"]


def _config_map(item: Object, old: Object | None) -> list[str]:
    problems = []
    content = {**(item.get("data") or {}), **(item.get("binaryData") or {})}
    size = sum(len(value.encode()) for value in content.values())
    problems += [
        f'data[{key}]: Invalid value: "{key}": a valid config key must consist of alphanumeric '
        "characters, '-', '_' or '.'"
        for key in content
        if not _CONFIG_KEY.fullmatch(key)
    ]
    if size > _CONFIG_MAP_BYTES:
        problems.append(f"[]: Too long: may not be more than {_CONFIG_MAP_BYTES} bytes")
    if old and old.get("immutable"):
        problems += [
            f"{field}: Forbidden: field is immutable when `immutable` is set"
            for field in ("immutable", "data", "binaryData")
            if item.get(field) != old.get(field)
        ]
    return problems
