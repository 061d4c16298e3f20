"""One run in Weights & Biases, or a quiet stand-in.

The mode is that of WANDB_MODE: online, offline or disabled. A server that does not answer in time
makes a run an offline one, which `wandb sync` uploads later.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from fractal_k8s.errors import UsageError

Say = Callable[[str], None]

# how long the server may take to answer
VARIABLE: Final = "FRACTAL_K8S_WANDB_SECONDS"
_INIT_SECONDS: Final = 30.0
# how long the last upload may take before the run ends without it
_FINISH_SECONDS: Final = 120.0
_SECRET: Final = "WANDB_API_KEY"
_NO_KEY: Final = "no API key (WANDB_API_KEY or `wandb login`)"
_SERVER: Final = "https://api.wandb.ai"
# What W&B's client would find out about the machine: nothing that the outcomes do not tell, and
# command lines and addresses of repositories may hold what is nobody's business.
PRIVATE: Final[Mapping[str, Any]] = {
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of a run before it begins."""

    project: str
    name: str
    # runs of one sweep, or of one run that was resumed, stand together
    group: str
    config: Mapping[str, Any]
    # where files of the run go
    folder: Path
    tags: tuple[str, ...] = field(default=())
    # whose project it is; None = the key's own
    entity: str | None = None
    # a run of that id is gone on with; None = a new one
    run_id: str | None = None
    # settings of W&B's client that differ from the usual ones here
    settings: Mapping[str, Any] = field(default_factory=dict)
    # whether the folder is there after the run, so that a person can be sent to it
    stays: bool = True


class Tracker(Protocol):
    """Where a run's numbers go beside its own folder."""

    @property
    def is_uploaded(self) -> bool:
        """Whether a server has everything, once the run is finished."""
        ...

    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        """Notes numbers, and tables given as lists of rows; steps never fall. None = the next."""
        ...

    def log_media(self, images: Mapping[str, Path], pages: Mapping[str, Path]) -> None:
        """Shows pictures and HTML pages, each under its name."""
        ...

    def add_artifact(self, name: str, files: Mapping[str, Path], *, kind: str = "model") -> None:
        """Keeps files as a versioned artifact, each under its name."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Notes what the run came to and closes it."""
        ...


class NoTracker:
    """Tracks nothing."""

    is_uploaded = True

    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        pass

    def log_media(self, images: Mapping[str, Path], pages: Mapping[str, Path]) -> None:
        pass

    def add_artifact(self, name: str, files: Mapping[str, Path], *, kind: str = "model") -> None:
        pass

    def finish(self, summary: Mapping[str, Any]) -> None:
        pass


def require_wandb() -> None:
    """Makes sure that W&B can be used at all, before anything is loaded.

    Raises:
        UsageError: the library is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise UsageError(
            "--wandb needs the wandb library: install it with `pip install 'fractal-k8s[wandb]'`, "
            "or leave --wandb out"
        )


def open_wandb(tracked: Tracked, say: Say) -> Tracker:
    """A W&B run, online if its server answers within seconds, else offline."""
    _prepare(tracked.folder)
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "online":
        try:
            if _has_key():
                return open_run(tracked, mode, say)
            reason = _NO_KEY
        except Exception as error:  # whatever its client raises, training goes on
            reason = f"the server cannot be used ({harmless(error)})"
        say(f"W&B: {reason}; the run is kept offline")
        mode = "offline"
    try:
        return open_run(tracked, mode, say)
    except Exception as error:
        say(f"W&B: not tracked ({harmless(error)})")
        return NoTracker()


def open_run(tracked: Tracked, mode: str, say: Say) -> Tracker:
    """A W&B run in one of its modes: online, offline or disabled.

    Raises:
        Exception: whatever W&B's client raises where it cannot begin.
    """
    _prepare(tracked.folder)
    return _WandbTracker(_init(tracked, mode), say, stays=tracked.stays)


def _prepare(folder: Path) -> None:
    """What W&B's client finds when it is first used."""
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb" / "data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))
    os.environ.setdefault("WANDB_SILENT", "true")
    folder.mkdir(parents=True, exist_ok=True)


def why_unusable(seconds: float) -> str | None:
    """Why no run can be online, as far as can be told without one; None = it may.

    Args:
        seconds: how long the server may take to answer anything at all.
    """
    address = os.environ.get("WANDB_BASE_URL") or _SERVER
    try:
        with urllib.request.urlopen(address, timeout=seconds):
            pass
    except urllib.error.HTTPError as error:  # an answer, whatever it says
        error.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{address} does not answer ({getattr(error, 'reason', error)})"
    try:
        return None if _has_key() else _NO_KEY
    except Exception as error:  # whatever its client raises
        return harmless(error)


def _has_key() -> bool:
    import wandb

    return wandb.login(prompt=False, verify=False)


def _init(tracked: Tracked, mode: str) -> Any:
    import wandb

    seconds = float(os.environ.get(VARIABLE, _INIT_SECONDS))
    return wandb.init(
        project=tracked.project,
        entity=tracked.entity,
        id=tracked.run_id,
        resume=None if tracked.run_id is None else "allow",
        name=tracked.name,
        group=tracked.group,
        config=dict(tracked.config),
        tags=list(tracked.tags),
        dir=str(tracked.folder),
        mode=mode,  # type: ignore[arg-type]  # any other word is refused by wandb
        settings=wandb.Settings(
            **{
                "console": "off",
                "init_timeout": seconds,
                "finish_timeout": _FINISH_SECONDS,
                "finish_timeout_raises": True,
                **tracked.settings,
            }
        ),
    )


class _WandbTracker:
    """A W&B run whose trouble is told once and never raised."""

    def __init__(self, run: Any, say: Say, *, stays: bool) -> None:
        self._run = run
        self._say = say
        self._stays = stays
        self._told = False
        self._is_uploaded = False

    @property
    def is_uploaded(self) -> bool:
        return self._is_uploaded

    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        if metrics:
            self._try(lambda: self._run.log(_with_tables(metrics), step=step))

    def log_media(self, images: Mapping[str, Path], pages: Mapping[str, Path]) -> None:
        def show() -> None:
            import wandb

            shown: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in images.items()}
            for name, path in pages.items():
                shown[name] = wandb.Html(path.read_text(encoding="utf-8"), inject=False)
            self._run.log(shown)

        if images or pages:
            self._try(show)

    def add_artifact(self, name: str, files: Mapping[str, Path], *, kind: str = "model") -> None:
        def add() -> None:
            import wandb

            if self._run.settings._offline and not self._stays:
                self._save(files)
                return
            artifact = wandb.Artifact(name, type=kind)
            for path, file in files.items():
                artifact.add_file(str(file), name=path, policy="immutable")
            self._run.log_artifact(artifact)

        self._try(add)

    def _save(self, files: Mapping[str, Path]) -> None:
        """Adds files to the run itself: an artifact's would lie elsewhere, and not be kept."""
        for name, file in files.items():
            target = Path(self._run.dir, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            self._run.save(str(target), base_path=self._run.dir, policy="now")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Waits for the last upload, but not for ever: what is missing lies in the run's files."""
        self._try(lambda: self._run.summary.update(dict(summary)))
        try:
            self._run.finish()
            self._is_uploaded = not (self._run.settings._offline or self._told)
        except Exception as error:
            place = Path(self._run.dir).parent
            hint = f"; upload the rest with `wandb sync {place}`" if self._stays else ""
            self._say(f"W&B: not everything was uploaded ({harmless(error)}){hint}")

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            if not self._told:
                self._say(f"W&B: not everything is tracked ({harmless(error)})")
            self._told = True


def _with_tables(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of rows as W&B's tables."""
    import wandb

    found = dict(metrics)
    for key, rows in metrics.items():
        if isinstance(rows, list) and rows:
            columns = list(rows[0])
            data = [[row[column] for column in columns] for row in rows]
            found[key] = wandb.Table(columns=columns, data=data)
    return found


def harmless(error: Exception) -> str:
    """The first line of an error without the key, which some messages quote."""
    text = (str(error).strip().splitlines() or [""])[0]
    secret = os.environ.get(_SECRET)
    if secret:
        text = text.replace(secret, "***")
    return f"{type(error).__name__}: {text[:200]}"
