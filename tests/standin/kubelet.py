"""Scheduler and kubelet: pods become processes on this machine, on `Objects` alone.

There are no images, no isolation and no GPUs: a container's command runs as it is, with the pod's
variables, its mounts mapped to folders, and nothing else of this machine's environment but PATH,
PYTHONPATH and LANG. Mounts that are read-only in the pod are not made so here. One container per
pod. A pod that ends keeps its log until `stop`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from standin import status
from standin.accounts import Accounts
from standin.container import ConfigError, Launch, MountError, discard, prepare
from standin.deletion import ENDED, delete_pod, edit
from standin.events import Recorder
from standin.objects import ApiError, Change, Object, Objects, now
from standin.scheduler import make_node, place

Outcome = Callable[[Object], int]

# the exit code of a container whose program could not be started
_NOT_STARTED: Final = 128


@dataclass
class _Run:
    """A pod's process, and what is known of how it was ended."""

    key: tuple[str, str]
    uid: str
    folder: Path
    launch: Launch
    process: subprocess.Popen[bytes]
    started: str = field(default_factory=now)
    oom: bool = False
    lost: bool = False  # with its node
    is_stopping: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def kill(self) -> None:
        """Ends the process and all it has started, as the end of a container does."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in _processes_in(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Kubelet:
    """Runs the pods of all nodes.

    Args:
        root: an empty folder for what pods have on their nodes.
        claims: folder of each PersistentVolumeClaim's storage, by the claim's name; a claim that
            is pending is bound to it for its first pod.
        nodes: Node objects (`scheduler.make_node`); they are created if they are not there.
        slots: how many processes run at once; pods beyond are kept creating.
        instant: pods succeed at once without a process; a function tells each one's exit code.
        has_image: whether an image can be pulled.
        retry_s: seconds between two tries at what is missing.
        accounts: gives pods their tokens; None = there is no API that they could reach.
    """

    def __init__(
        self,
        objects: Objects,
        root: Path,
        *,
        claims: Mapping[str, Path] | None = None,
        nodes: Sequence[Object] | None = None,
        slots: int = 4,
        instant: bool | Outcome = False,
        has_image: Callable[[str], bool] = lambda image: "missing" not in image,
        retry_s: float = 0.2,
        accounts: Accounts | None = None,
    ) -> None:
        self._objects, self._root = objects, root.resolve()
        self.claims = dict(claims or {})
        self._nodes = list(nodes) if nodes is not None else [make_node("node-0")]
        self._slots, self._has_image, self._retry_s = slots, has_image, retry_s
        self._accounts = accounts
        self._instant: Outcome | None = (lambda _: 0) if instant is True else instant or None
        self._pods: dict[tuple[str, str], Object] = {}  # not ended, or being deleted
        self._fresh: set[tuple[str, str]] = set()  # those to look at
        self._waiting: set[tuple[str, str]] = set()  # those to be tried again when it is time
        self._runs: dict[tuple[str, str], _Run] = {}
        self._events = Recorder(objects, "kubelet", "pods")
        self._scheduler_events = Recorder(objects, "default-scheduler", "pods")
        self._threads: list[threading.Thread] = []
        self._version = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="kubelet", daemon=True)

    def start(self) -> None:
        for node in self._nodes:
            with suppress(ApiError):
                self._objects.create("nodes", node)
        self._thread.start()

    def stop(self) -> None:
        """Ends every process with all it has started."""
        self._stopped.set()
        with self._objects.changed:
            self._objects.changed.notify_all()
        self._thread.join()
        for run in list(self._runs.values()):
            run.kill()
        for thread in self._threads:
            thread.join()

    # --- what a test or the API server does to pods ---

    def delete_pod(self, namespace: str, name: str, grace: int | None = None) -> Object:
        """Asks a pod to go: SIGTERM, then SIGKILL after a grace period in seconds.

        Raises:
            ApiError: 404, there is no such pod.
        """
        return delete_pod(self._objects, namespace, name, grace)

    def evict(self, namespace: str, name: str) -> None:
        """Evicts a pod as `kubectl drain` does."""
        condition = status.disruption("EvictionByEvictionAPI", "Eviction API: evicting")
        with self._objects.changed:
            self._disrupt(namespace, name, condition)
            self.delete_pod(namespace, name)

    def oom_kill(self, namespace: str, name: str) -> None:
        """Kills a pod's process as the kernel does when its memory is over the limit."""
        run = self._run_of(namespace, name)
        run.oom = True
        run.kill()

    def kill_node(self, name: str) -> None:
        """Takes a node away: its pods are killed, and no kubelet tells how they ended."""
        self._objects.delete("nodes", "", name)
        text = "Taint manager: deleting due to NoExecute taint"
        for key, pod in list(self._pods.items()):
            if pod["spec"].get("nodeName") == name:
                self._disrupt(*key, status.disruption("DeletionByTaintManager", text))
                if (run := self._runs.get(key)) is not None:
                    run.lost = True
                with suppress(ApiError):
                    self.delete_pod(*key, grace=0)

    def pid(self, namespace: str, name: str) -> int:
        """The process of a running pod."""
        return self._run_of(namespace, name).process.pid

    def _run_of(self, namespace: str, name: str) -> _Run:
        """What runs a pod; one that has only just started may already be seen by what it does."""
        deadline = time.monotonic() + 1
        while (namespace, name) not in self._runs and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._runs[namespace, name]

    def log_path(self, namespace: str, name: str) -> Path:
        """File with what a pod's container has written; it may not be there yet."""
        return self._root / "logs" / f"{namespace}_{name}.log"

    # --- the loop ---

    def _loop(self) -> None:
        self._list_all()
        retried = time.monotonic()
        while not self._stopped.is_set():
            try:
                changes = self._objects.since(self._version, self._retry_s)
            except ApiError:
                self._list_all()
                continue
            for change in changes:
                if self._take(change):
                    retried = 0.0
            if time.monotonic() - retried >= self._retry_s:
                retried = time.monotonic()
                self._fresh.update(self._pods)
                self._waiting.clear()
                self._renew_tokens()
            for key in [key for key in self._pods if key in self._fresh]:
                if key in self._pods:
                    self._sync(key)
            self._fresh.clear()

    def _renew_tokens(self) -> None:
        for run in list(self._runs.values()):
            for volume in run.launch.projected:
                with suppress(ApiError, OSError):  # the account is gone, or the pod with its folder
                    volume.renew()

    def _list_all(self) -> None:
        with self._objects.changed:
            self._version = self._objects.version
            pods = self._objects.peek("pods")
        self._pods = {_key(pod): pod for pod in pods if not _is_over(pod)}
        self._fresh = set(self._pods)
        for key, run in list(self._runs.items()):
            if key not in self._pods and not run.ended.is_set():
                run.kill()

    def _take(self, change: Change) -> bool:
        """Notes a change; whether it may let go on what waits."""
        self._version = change.version
        if change.plural != "pods":
            return change.plural == "nodes"
        key = _key(change.object)
        run = self._runs.get(key)
        if change.type == "DELETED" and run is not None and not run.ended.is_set():
            run.kill()  # nobody waited for it
        if change.type == "DELETED" or _is_over(change.object):
            return self._pods.pop(key, None) is not None
        self._pods[key] = change.object
        if key not in self._waiting or "deletionTimestamp" in change.object["metadata"]:
            self._fresh.add(key)
        return False

    def _sync(self, key: tuple[str, str]) -> None:
        pod, run = self._pods[key], self._runs.get(key)
        if "deletionTimestamp" in pod["metadata"]:
            self._end(key, pod, run)
        elif pod["status"].get("phase") in ENDED or run is not None:
            return
        elif self._instant is not None:
            self._complete(key, pod, self._instant(pod))
        elif pod["spec"].get("nodeName"):
            self._start(key, pod)
        else:
            self._schedule(key, pod)

    def _complete(self, key: tuple[str, str], pod: Object, code: int) -> None:
        node = self._nodes[0]["metadata"]["name"]

        def change(item: Object) -> None:
            item["spec"]["nodeName"] = node
            container = item["spec"]["containers"][0]
            state = status.terminated(code, now(), "")
            item["status"] = status.ended(item["status"], container, state)

        written = edit(self._objects, "pods", *key, change)
        if written is None or "deletionTimestamp" not in written["metadata"]:
            self._pods.pop(key, None)

    def _schedule(self, key: tuple[str, str], pod: Object) -> None:
        problem = self._missing_claim(pod)
        node = ""
        nodes = self._objects.list("nodes")
        if problem:
            problem = f"0/{len(nodes)} nodes are available: {problem}."
        else:
            placed = [
                other for other in self._pods.values() if other["status"].get("phase") not in ENDED
            ]
            node, problem = place(pod, nodes, placed)

        def change(item: Object) -> None:
            if node:
                item["spec"]["nodeName"] = node
            status.set_condition(item["status"], status.scheduled(problem))

        written = edit(self._objects, "pods", *key, change)
        if written is not None:
            self._pods[key] = written
        if node:
            text = f"Successfully assigned {'/'.join(key)} to {node}"
            self._scheduler_events.say(pod, "Scheduled", text)
        else:
            self._waiting.add(key)
            self._scheduler_events.warn_once(pod, "FailedScheduling", problem)

    def _missing_claim(self, pod: Object) -> str:
        for volume in pod["spec"].get("volumes") or ():
            if "persistentVolumeClaim" not in volume:
                continue
            name = volume["persistentVolumeClaim"]["claimName"]
            try:
                claim = self._objects.get(
                    "persistentvolumeclaims", pod["metadata"]["namespace"], name
                )
            except ApiError:
                return f'persistentvolumeclaim "{name}" not found'
            if (claim.get("status") or {}).get("phase", "Bound") != "Bound":
                if name not in self.claims:
                    return "pod has unbound immediate PersistentVolumeClaims"
                edit(self._objects, "persistentvolumeclaims", *_key(claim), status.bind)
        return ""

    # --- one pod ---

    def _start(self, key: tuple[str, str], pod: Object) -> None:
        if sum(not run.ended.is_set() for run in list(self._runs.values())) >= self._slots:
            return
        container = pod["spec"]["containers"][0]
        folder = self._root / "pods" / f"{'_'.join(key)}_{pod['metadata']['uid'][:8]}"
        if not self._has_image(container["image"]):
            self._cannot_pull(key, pod, container)
            return
        try:
            launch = prepare(self._objects, pod, folder, self.claims, self._accounts)
        except MountError as error:
            self._wait(key, pod, "ContainerCreating", "")
            self._events.warn_once(pod, "FailedMount", str(error))
            return
        except ConfigError as error:
            self._wait(key, pod, "CreateContainerConfigError", str(error))
            self._events.warn_once(pod, "Failed", f"Error: {error}")
            return
        self._spawn(key, pod, folder, launch)

    def _cannot_pull(self, key: tuple[str, str], pod: Object, container: Object) -> None:
        image = container["image"]
        why = f'failed to pull and unpack image "{image}": {image}: not found'
        statuses = pod["status"].get("containerStatuses")
        before = statuses[0]["state"].get("waiting", {}).get("reason") if statuses else None
        if before not in ("ErrImagePull", "ImagePullBackOff"):
            self._wait(key, pod, "ErrImagePull", why)
            self._events.warn_once(pod, "Failed", f'Failed to pull image "{image}": {why}')
        else:
            text = f'Back-off pulling image "{image}": ErrImagePull: {why}'
            self._wait(key, pod, "ImagePullBackOff", text)
            self._events.warn_once(pod, "BackOff", f'Back-off pulling image "{image}"')

    def _wait(self, key: tuple[str, str], pod: Object, reason: str, message: str) -> None:
        container = pod["spec"]["containers"][0]

        def change(item: Object) -> None:
            item["status"] = status.waiting(item["status"], container, reason, message)

        edit(self._objects, "pods", *key, change)
        self._waiting.add(key)

    def _spawn(self, key: tuple[str, str], pod: Object, folder: Path, launch: Launch) -> None:
        container, uid = pod["spec"]["containers"][0], pod["metadata"]["uid"]
        log = self.log_path(*key)
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    launch.argv,
                    env=launch.env,
                    cwd=launch.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            text = f"failed to create containerd task: exec: {launch.argv[0]!r}: {error.strerror}"
            state = status.terminated(_NOT_STARTED, now(), text, "StartError")
            self._report_end(key, uid, container, state)
            return
        run = _Run(key, uid, folder, launch, process)
        self._runs[key] = run

        def change(item: Object) -> None:
            item["status"] = status.running(item["status"], container, run.started)

        edit(self._objects, "pods", *key, change)
        self._events.say(pod, "Started", f"Container started: {container['name']}")
        self._follow(self._wait_for, run, container)

    def _wait_for(self, run: _Run, container: Object) -> None:
        code = run.process.wait()
        run.kill()  # what it has started goes with it
        run.ended.set()
        if self._stopped.is_set():
            return
        if run.lost:
            self._runs.pop(run.key, None)
            self._bury(run.key)
            return
        code = 128 - code if code < 0 else code
        message = status.termination_message(
            run.launch.termination_log,
            self.log_path(*run.key),
            code,
            container.get("terminationMessagePolicy", "File"),
        )
        reason = "OOMKilled" if run.oom else None
        state = status.terminated(code, run.started, message, reason)
        self._report_end(run.key, run.uid, container, state)
        discard(run.folder)

    def _report_end(self, key: tuple[str, str], uid: str, container: Object, state: Object) -> None:
        """Says how a container ended; a pod that is being deleted has no more to wait for."""

        def change(item: Object) -> None:
            if item["metadata"]["uid"] != uid:
                return
            item["status"] = status.ended(item["status"], container, state)
            if "deletionTimestamp" in item["metadata"]:
                item["metadata"]["deletionGracePeriodSeconds"] = 0

        edit(self._objects, "pods", *key, change)
        self._runs.pop(key, None)

    def _end(self, key: tuple[str, str], pod: Object, run: _Run | None) -> None:
        """Goes on with the deletion of a pod."""
        if run is None:
            self._bury(key)
            return
        grace = pod["metadata"].get("deletionGracePeriodSeconds", 0)
        if grace == 0:
            run.kill()
        elif not run.is_stopping:
            run.is_stopping = True
            with suppress(ProcessLookupError):
                run.process.send_signal(signal.SIGTERM)
            name = pod["spec"]["containers"][0]["name"]
            self._events.say(pod, "Killing", f"Stopping container {name}")
            self._follow(self._kill_after, run, grace)

    def _kill_after(self, run: _Run, grace: float) -> None:
        if not run.ended.wait(grace):
            run.kill()

    def _follow(self, target: Callable[..., None], *args: Any) -> None:
        """Runs something beside the loop, until `stop` at the latest."""
        thread = threading.Thread(target=target, args=args, name="kubelet-pod", daemon=True)
        self._threads = [*(other for other in self._threads if other.is_alive()), thread]
        thread.start()

    def _bury(self, key: tuple[str, str]) -> None:
        """Lets go a pod without a process; one that did not end counts as failed."""

        def change(item: Object) -> None:
            if item["status"].get("phase") not in ENDED:
                item["status"]["phase"] = "Failed"
            item["metadata"]["deletionGracePeriodSeconds"] = 0

        edit(self._objects, "pods", *key, change)

    def _disrupt(self, namespace: str, name: str, condition: Object) -> None:
        edit(
            self._objects,
            "pods",
            namespace,
            name,
            lambda item: status.set_condition(item["status"], condition),
        )


def _key(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _processes_in(folder: Path) -> list[int]:
    """Processes that work in a folder, whatever group they have moved to; none without /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


def _is_over(pod: Object) -> bool:
    """Whether a kubelet has nothing more to do with a pod."""
    meta: dict[str, Any] = pod["metadata"]
    ended = pod["status"].get("phase") in ENDED
    return ended and ("deletionTimestamp" not in meta or not meta.get("deletionGracePeriodSeconds"))
