"""Where the scenarios run: a namespace of a cluster, a store, and the commands a person types."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from kubernetes import client, config

from standin.cluster import StandIn

T = TypeVar("T")
Done = subprocess.CompletedProcess[str]

INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class Started:
    """A command that runs, and the file with what it has said."""

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def told(self) -> str:
        return self.path.read_text()

    def end(self, code: int, seconds: float = 300) -> str:
        """Waits for its end; everything it has said."""
        assert self.process.wait(seconds) == code, self.told
        assert "Traceback" not in self.told, self.told
        return self.told


@dataclass
class Place:
    """A namespace and a store; `standin` is None on a real cluster.

    Attributes:
        settings: of every Job, as a site's file has them.
        variables: of the commands' environment.
    """

    root: Path
    context: str
    namespace: str
    kubeconfig: Path | None
    kubectl_binary: Path
    settings: dict[str, Any]
    variables: Mapping[str, str]
    standin: StandIn | None = None
    made: list[str] = field(default_factory=list)
    # everything that commands have said
    told: list[str] = field(default_factory=list)

    @property
    def store(self) -> str:
        """URI of the store for this machine."""
        return str(self.settings.get("client_store") or self.settings["store"])

    @property
    def site(self) -> Path:
        path = self.root / "site.yaml"
        path.write_text(yaml.safe_dump(self.settings))
        return path

    def only_standin(self, why: str) -> StandIn:
        """The stand-in, for what is not possible or not right on a real cluster."""
        if self.standin is None:
            pytest.skip(f"only on the stand-in: {why}")
        return self.standin

    # --- commands ---

    def cli(self, *arguments: str | Path, code: int | None = 0, here: bool = False) -> Done:
        """`fractal-k8s` as a process of its own, with the cluster's options unless `here`."""
        done = subprocess.run(
            self._argv(*arguments, here=here),
            cwd=self.root,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        self.told += [done.stdout, done.stderr]
        assert "Traceback" not in done.stderr, done.stderr
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def start(self, *arguments: str | Path) -> Started:
        """The same, not waited for; both outputs go to one file."""
        path = self.root / f"{arguments[0]}-{len(list(self.root.glob('*.told')))}.told"
        with path.open("w") as told:
            process = subprocess.Popen(
                self._argv(*arguments), cwd=self.root, env=self.env, stdout=told, stderr=told
            )
        return Started(process, path)

    def _argv(self, *arguments: str | Path, here: bool = False) -> list[str]:
        return [sys.executable, "-m", "fractal_k8s", *self.words(*arguments, here=here)]

    def words(self, *arguments: str | Path, here: bool = False) -> list[str]:
        """The command line after the program's name."""
        where = [] if here else ["--context", self.context, "--namespace", self.namespace]
        return [*(str(argument) for argument in arguments), *where]

    @property
    def env(self) -> dict[str, str]:
        env = {**os.environ, **self.variables, "COLUMNS": "200"}
        return env if self.kubeconfig is None else {**env, "KUBECONFIG": str(self.kubeconfig)}

    def launch(self, sweep: Path, *options: str | Path, code: int = 0) -> dict[str, Any]:
        """Launches a sweep file; what --json tells."""
        done = self.cli("launch", sweep, "--site", self.site, *options, "--json", code=code)
        facts: dict[str, Any] = json.loads(done.stdout)
        self.made.append(facts["sweep"])
        return facts

    def status(self, sweep_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cli("status", sweep_id, "--json").stdout)
        return found

    def kubectl(self, *arguments: str, code: int | None = 0, stdin: str = "") -> str:
        """kubectl's standard output."""
        done = subprocess.run(
            [self.kubectl_binary, "--context", self.context, "-n", self.namespace, *arguments],
            cwd=self.root,
            env=self.env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """`kubectl get` as objects; None if it is not there."""
        text = self.kubectl("get", *arguments, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    @functools.cached_property
    def _core(self) -> Any:
        """The official client: what is asked for again and again takes no process."""
        path = None if self.kubeconfig is None else str(self.kubeconfig)
        return client.CoreV1Api(config.new_client_from_config(path, self.context))

    def pods(self, sweep_id: str, phase: str | None = None) -> list[str]:
        """Names of a sweep's pods, or of those in a phase."""
        found = self._core.list_namespaced_pod(
            self.namespace, label_selector=f"fractal-k8s.io/sweep={sweep_id}", _request_timeout=30
        )
        return [pod.metadata.name for pod in found.items if phase in (None, pod.status.phase)]

    def log(self, pod: str) -> str:
        """What a pod has printed so far; nothing if it is gone."""
        options = {"_request_timeout": 30, "_preload_content": False}  # else it is text of bytes
        try:
            found = self._core.read_namespaced_pod_log(pod, self.namespace, **options)
            return str(found.data.decode())
        except client.ApiException:
            return ""

    # --- trouble ---

    def evict(self, pod: str) -> None:
        """Asks the eviction API, as draining a node does."""
        body = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod))
        self._core.create_namespaced_pod_eviction(pod, self.namespace, body, _request_timeout=30)

    def run_out_of_memory(self, pod: str) -> None:
        """Makes a pod take more memory than it may."""
        if self.standin is not None:
            self.standin.kubelet.oom_kill(self.namespace, pod)
            return
        # the kernel kills everything in the container (cgroup v2) or its largest process (v1),
        # which has to be the worker, not one of these
        greedy = (
            "import os, time\n"
            "open('/proc/1/oom_score_adj', 'w').write('1000')\n"
            "while os.fork(): pass\n"
            "held = bytearray(1 << 26); time.sleep(60)"
        )
        self.kubectl("exec", pod, "--", "python", "-c", greedy, code=None)

    def clean(self) -> None:
        for sweep_id in dict.fromkeys(self.made):
            options = ("--results", "--confirm", sweep_id, "--store", self.store)
            self.cli("delete", sweep_id, *options, code=None)


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 120) -> T:
    """What a look finds, once it finds something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := look()) is not None and found is not False:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")
