"""What a container's process is given: its folders, its variables, its argv.

There is no image: the process runs here, and the paths of its mounts are folders here. They are
put in the place of the mount paths in the arguments and in the variables' values.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from standin.accounts import FOLDER, Accounts, has_token
from standin.objects import ApiError, Object, Objects

TERMINATION_LOG: Final = "/dev/termination-log"
PROGRAM: Final = "fractal-k8s"
# what the program is started by where it has a token
_STARTER: Final = Path(__file__).with_name("inpod.py")

# volumes made from objects: their key, the objects' kind, the key of the object's name
_SOURCES: Final = (("configMap", "configmaps", "name"), ("secret", "secrets", "secretName"))


class MountError(Exception):
    """A volume is not there; the kubelet tries again."""


class ConfigError(Exception):
    """A variable cannot be made; the kubelet tries again."""


@dataclass
class Projected:
    """A volume with a token, which is written anew before the token expires."""

    pod: Object
    volume: Object
    where: Path
    accounts: Accounts
    due: float = 0.0  # monotonic time

    def renew(self) -> None:
        """Writes all files anew, if it is time.

        Raises:
            ApiError: the account is gone.
        """
        if time.monotonic() < self.due:
            return
        due = self.accounts.renewal()
        _replace_all(self.where, self.accounts.files(self.pod, self.volume))
        self.due = due


@dataclass(frozen=True)
class Launch:
    """How the process of a container is started."""

    argv: list[str]
    env: dict[str, str]
    cwd: Path
    termination_log: Path
    projected: list[Projected] = field(default_factory=list)


def prepare(
    objects: Objects,
    pod: Object,
    folder: Path,
    claims: Mapping[str, Path],
    accounts: Accounts | None = None,
) -> Launch:
    """Makes a pod's volumes in a folder and tells how to start its one container.

    Args:
        accounts: what issues tokens; None = there is no API that pods could reach.

    Raises:
        MountError, ConfigError: what the pod names is missing.
    """
    containers = [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
    if len(containers) > 1:
        raise ConfigError("the stand-in runs pods of one container only")
    container = containers[0]
    cwd = folder / "root"
    cwd.mkdir(parents=True, exist_ok=True)
    if (container.get("securityContext") or {}).get("readOnlyRootFilesystem"):
        cwd.chmod(0o555)  # root writes there all the same
    projected: list[Projected] = []
    if accounts is not None:
        projected = [
            Projected(pod, volume, folder / "volumes" / volume["name"], accounts)
            for volume in pod["spec"].get("volumes") or ()
            if "projected" in volume
        ]
    mounts = _mount(objects, pod, container, folder, claims)
    for volume in projected:
        _first(volume)
    log = folder / "termination-log"
    log.touch()
    mounts[container.get("terminationMessagePath", TERMINATION_LOG)] = log
    translate = _translator(mounts, _parents(mounts, folder / "parents"))
    plain = _variables(objects, pod, container)
    words = [
        *(container.get("command") or [PROGRAM]),
        *(container.get("args") or ()),
    ]
    argv = [translate(expand(word, plain)) for word in words]
    if argv[0] == PROGRAM and accounts is not None and has_token(pod):
        argv[:1] = [sys.executable, "-P", str(_STARTER), str(mounts[FOLDER])]
    elif argv[0] == PROGRAM:
        argv[:1] = [sys.executable, "-m", "fractal_k8s"]
    env = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    if accounts is not None:
        host, port = accounts.address
        env |= {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": str(port)}
    env |= {name: translate(value) for name, value in plain.items()}
    if "workingDir" in container:
        cwd = Path(translate(container["workingDir"]))
    return Launch(argv, env, cwd, log, projected)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replaces $(NAME) by the variable, where there is one; $$ is a plain $."""

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)", replaced, text)


# --- volumes ---


def _mount(
    objects: Objects, pod: Object, container: Object, folder: Path, claims: Mapping[str, Path]
) -> dict[str, Path]:
    """Where each mount path of a container really is."""
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
    mounts: dict[str, Path] = {}
    for mount in container.get("volumeMounts") or ():
        where = _volume(objects, pod, volumes[mount["name"]], folder, claims)
        mounts[mount["mountPath"].rstrip("/")] = where / mount.get("subPath", "")
    return mounts


def _volume(
    objects: Objects, pod: Object, volume: Object, folder: Path, claims: Mapping[str, Path]
) -> Path:
    namespace, name = pod["metadata"]["namespace"], volume["name"]
    where = folder / "volumes" / name
    where.mkdir(parents=True, exist_ok=True)
    failed = f'MountVolume.SetUp failed for volume "{name}" : '
    if "persistentVolumeClaim" in volume:
        claim = str(volume["persistentVolumeClaim"]["claimName"])
        if claim not in claims:
            raise MountError(f"{failed}the storage of claim {claim} cannot be reached")
        return claims[claim]
    for key, plural, named in _SOURCES:
        if key in volume:
            source = volume[key]
            try:
                content = _content(objects, plural, namespace, source[named])
            except ApiError:
                if source.get("optional"):
                    continue
                raise MountError(f'{failed}{key.lower()} "{source[named]}" not found') from None
            chosen = source.get("items") or [{"key": item, "path": item} for item in content]
            for item in chosen:
                if item["key"] not in content:
                    raise MountError(f"{failed}references non-existent config key: {item['key']}")
                path = where / item["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content[item["key"]])
    return where


def _first(volume: Projected) -> None:
    try:
        volume.renew()
    except ApiError as error:
        name = volume.volume["name"]
        raise MountError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from None


def _replace_all(where: Path, files: Mapping[str, bytes]) -> None:
    """Writes files of a volume as a kubelet does: programs see all the old or all the new ones."""
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=where))
    for name, content in files.items():
        (fresh / name).write_bytes(content)
        if not (where / name).is_symlink():
            (where / name).symlink_to(Path("..data") / name)
    before = (where / "..data").resolve()
    (where / "..data_tmp").symlink_to(fresh.name)
    (where / "..data_tmp").replace(where / "..data")
    if before.name != "..data":
        shutil.rmtree(before)


def _content(objects: Objects, plural: str, namespace: str, name: str) -> dict[str, bytes]:
    """What a ConfigMap or Secret holds, by key."""
    found = objects.get(plural, namespace, name)
    if plural == "secrets":
        plain = {key: base64.b64decode(text) for key, text in (found.get("data") or {}).items()}
        given = found.get("stringData") or {}
    else:
        binary = found.get("binaryData") or {}
        plain = {key: base64.b64decode(text) for key, text in binary.items()}
        given = found.get("data") or {}
    return plain | {key: text.encode() for key, text in given.items()}


def _parents(mounts: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """The folders that mounts lie in, such as /cache for /cache/model, with links to them."""
    found: dict[str, Path] = {}
    for path, where in mounts.items():
        if any(path.startswith(f"{other}/") for other in mounts):
            continue  # its parent is a volume itself
        link = folder / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(where, target_is_directory=where.is_dir())
        parent = path.rpartition("/")[0]
        if parent and parent not in mounts:
            found[parent] = link.parent
    return found


def _translator(mounts: Mapping[str, Path], parents: Mapping[str, Path]) -> Callable[[str], str]:
    """Puts real folders in the place of mount paths, the longest that fits.

    Args:
        parents: folders that are only meant where nothing follows, as of most nothing is mounted.
    """
    paths = "|".join(re.escape(path) for path in sorted(mounts, key=len, reverse=True))
    # a path starts there: not within a longer one, nor after the // of a URI other than file://
    pattern = re.compile(rf"(?:(?<=file://)|(?<![\w./-]))({paths})(?![\w.-])")

    def translated(text: str) -> str:
        if text in parents:
            return str(parents[text])
        return pattern.sub(lambda match: str(mounts[match[1]]), text)

    return translated


# --- variables ---


def _variables(objects: Objects, pod: Object, container: Object) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        for key, plural in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if key in source:
                content = _referred(objects, pod, plural, source[key])
                prefix = source.get("prefix", "")
                found |= {prefix + name: value.decode() for name, value in content.items()}
    for variable in container.get("env") or ():
        value = _value(objects, pod, variable, found)
        if value is not None:
            found[variable["name"]] = value
    return found


def _value(
    objects: Objects, pod: Object, variable: Object, before: Mapping[str, str]
) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return expand(variable.get("value", ""), before)
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    for key, plural in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
        if key in source:
            reference = source[key]
            content = _referred(objects, pod, plural, reference)
            if reference["key"] in content:
                return content[reference["key"]].decode()
            if reference.get("optional"):
                return None
            kind = {"configmaps": "ConfigMap", "secrets": "Secret"}[plural]
            place = f"{pod['metadata']['namespace']}/{reference['name']}"
            raise ConfigError(f"couldn't find key {reference['key']} in {kind} {place}")
    raise ConfigError(f"variable {variable['name']} comes from what the stand-in does not know")


def _referred(objects: Objects, pod: Object, plural: str, reference: Object) -> dict[str, bytes]:
    try:
        return _content(objects, plural, pod["metadata"]["namespace"], reference["name"])
    except ApiError:
        if reference.get("optional"):
            return {}
        raise ConfigError(f'{plural[:-1]} "{reference["name"]}" not found') from None


def _field(pod: Object, path: str) -> str:
    match = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if match:
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    value: Any = pod
    for part in path.split("."):
        value = (value or {}).get(part)
    return "" if value is None else str(value)


def discard(folder: Path) -> None:
    """Removes what a pod left on its node."""
    shutil.rmtree(folder, ignore_errors=True)
