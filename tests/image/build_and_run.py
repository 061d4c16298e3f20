"""Builds the image without a registry and trains in it; compares with training on this machine.

    .venv/bin/python tests/image/build_and_run.py [--rebuild-base] [-- arguments of `buildah build`]

Not part of the tests that pytest runs: it takes minutes, about 5 GB of disk, root, Linux with
buildah and debootstrap (Debian: `apt-get install buildah debootstrap`), a Debian mirror and pip's
index. Where one of the programs is missing it says so and exits with 77.

A base image made by debootstrap stands in for the registry's Python. The CPU image is built on it
by `scripts/image`, and looked into. Then it runs as a pod would: its own environment, user 65532,
a read-only root file system, its own /scratch and /tmp, nothing else writable but the store. It
trains an mlp sweep and one of the golden checkpoint, the same two are trained on this machine, and
where both are of one numerics class every number must be the same. What a container runtime would
add (cgroups, seccomp, network) is not tested.

Where the network has its own certificates or a mirror, mount them for the build, such as
`-- --volume /etc/ssl/certs:/etc/ssl/certs:ro --volume ~/.config/pip/pip.conf:/etc/pip.conf:ro`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
BASE: Final = "localhost/fractal-k8s-base:bookworm"
IMAGE: Final = "localhost/fractal-k8s:build-and-run"
USER: Final = 65532
SKIPPED: Final = 77
ENV: Final = {**os.environ, "BUILDAH_ISOLATION": "chroot", "IMAGE_BUILDER": "buildah"}

MLP: Final = """
name = "image-mlp"
model = "mlp"
resolution = [8, 8]
[axes.y]
knob = "output_lr"
low = 1e-2
high = 1e4
[axes.x]
knob = "input_lr"
low = 1e-2
high = 1e4
[training]
width = 16
steps = 100
"""

GPT: Final = """
name = "image-gpt"
model = "gpt"
checkpoint = "{golden}"
dataset = "conversations:{golden}/conversations.jsonl"
resolution = [4, 4]
[axes.y]
knob = "matrix_lr"
low = 1e-3
high = 1e-1
[axes.x]
knob = "unembedding_lr"
low = 1e-3
high = 1e-1
[training]
tokens = 400
batch_size = 2
max_seq_len = 100
[verdict]
window = 1
"""


def call(*command: str | Path, **options: Any) -> str:
    """Runs a command, shown; its output."""
    print("$", shlex.join(str(part) for part in command), flush=True)
    done = subprocess.run(
        [str(part) for part in command], env=ENV, text=True, stdout=subprocess.PIPE, **options
    )
    if done.returncode:
        sys.exit(f"failed with {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout.strip()


def timed(what: str, work: Callable[[], Any]) -> Any:
    began = time.monotonic()
    result = work()
    print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)
    return result


def skip_unless_possible() -> None:
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if missing:
        print(f"skipped: needs {' and '.join(missing)}; see the top of this file")
        sys.exit(SKIPPED)


# --- images ---


def make_base(work: Path) -> None:
    """A Debian with Python and pip, as the registry's slim Python is."""
    rootfs = work / "rootfs"
    packages = "python3,python3-pip,python3-venv,ca-certificates"
    call("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", rootfs, cwd=work)
    for managed in rootfs.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        managed.unlink()
    for downloaded in (
        *rootfs.glob("var/cache/apt/archives/*.deb"),
        *rootfs.glob("var/lib/apt/lists/*_*"),
    ):
        downloaded.unlink()
    (rootfs / "usr/bin/python").symlink_to("python3")
    container = call("buildah", "from", "scratch")
    call("buildah", "add", "--quiet", container, rootfs, "/")
    call("buildah", "commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(rootfs)


def has_image(name: str) -> bool:
    found = subprocess.run(["buildah", "inspect", "--type", "image", name], capture_output=True)
    return found.returncode == 0


def check_config(config: dict[str, Any], size: str) -> None:
    """What the image says of itself."""
    version = call(sys.executable, "-c", "import fractal_k8s as f; print(f.__version__)", cwd=ROOT)
    assert config["User"] == f"{USER}:{USER}", config
    assert config["Entrypoint"] == ["fractal-k8s"], config
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == version, labels
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40, labels
    print(f"image: {size}, {labels}")


def check_content(root: Path) -> None:
    """Nothing that builds, nothing compiled twice, nothing that its user may write."""
    for tool in ("pip", "pip3", "gcc", "cc", "g++", "make", "git"):
        found = [path for path in root.glob(f"*/**/bin/{tool}") if path.is_file()]
        assert not found, found
    package = next(root.glob("opt/venv/lib/python3*/site-packages/fractal_k8s"))
    sources = {path.stem for path in package.glob("*.py")}
    compiled = {path.name.split(".")[0] for path in package.glob("__pycache__/*.pyc")}
    assert sources == compiled, sources ^ compiled
    stdlib = next(root.glob("usr/**/lib/python3.*/json/decoder.py"))
    assert list(stdlib.parent.glob("__pycache__/decoder.*.pyc")), stdlib
    writable = [
        str(path)
        for top in ("opt", "usr", "etc")
        for path in (root / top).rglob("*")
        if not path.is_symlink() and (path.stat().st_mode & 0o002 or path.stat().st_uid == USER)
    ]
    assert not writable, writable


# --- pods ---


class Pod:
    """The image's file system, mounted read-only, and commands in it as a pod runs them."""

    def __init__(self, root: Path, config: dict[str, Any], shared: Path) -> None:
        self.root, self.config, self.shared = root, config, shared
        (root / shared.relative_to("/")).mkdir(parents=True, exist_ok=True)

    def start(self, *arguments: str, entrypoint: list[str] | None = None) -> subprocess.Popen[str]:
        """The entry point with arguments, as the process with number 1 that it is in a pod."""
        root = shlex.quote(str(self.root))
        shared = shlex.quote(str(self.shared))
        script = (
            f"set -e; mount --bind {root} {root}; mount -o remount,bind,ro {root}; cd {root}; "
            "mount -t proc proc proc; mount --bind /dev dev; "
            f"for d in tmp scratch; do mount -t tmpfs -o uid={USER},gid={USER} tmpfs $d; done; "
            f"mkdir -p .{shared}; mount --bind {shared} .{shared}; "
            f'exec chroot --userspec={USER}:{USER} . "$@"'
        )
        inside = [*(entrypoint or self.config["Entrypoint"]), *arguments]
        isolated = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", script, "sh"]
        clean = ["/usr/bin/env", "-i", "-C", self.config["WorkingDir"], *self.config["Env"]]
        return subprocess.Popen(
            [*isolated, *clean, *inside],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, entrypoint: list[str] | None = None) -> tuple[int, str]:
        """Exit code and output of the entry point with arguments."""
        process = self.start(*arguments, entrypoint=entrypoint)
        output, _ = process.communicate()
        return process.returncode, output

    def check_stopping(self, *arguments: str, after: float) -> None:
        """SIGTERM ends a worker at any time; the kernel ignores it for 1 unless it is handled."""
        process = self.start(*arguments)
        time.sleep(after)
        inner = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        os.kill(int(inner), signal.SIGTERM)
        began = time.monotonic()
        output, _ = process.communicate(timeout=240)
        seconds = time.monotonic() - began
        assert process.returncode == 143, output
        print(f"SIGTERM {after} s after the start: exit code 143 after {seconds:.1f} s")

    def check_isolation(self) -> None:
        """It is what a pod of the restricted profile is: nobody, without writable files."""
        code = (
            "import getpass, os, tempfile\n"
            f"assert os.getuid() == os.getgid() == {USER}, os.getuid()\n"
            "assert getpass.getuser() == 'fractal'\n"
            "for folder in ('/', '/opt/venv', '/usr/local', '/etc', '/var/tmp', '/home'):\n"
            "    try:\n"
            "        open(os.path.join(folder, 'x'), 'w')\n"
            "    except OSError as error:\n"
            "        assert error.errno in (13, 30), error\n"
            "    else:\n"
            "        raise AssertionError(folder)\n"
            "for folder in (os.environ['HOME'], tempfile.gettempdir(), os.getcwd()):\n"
            "    open(os.path.join(folder, 'x'), 'w')\n"
        )
        status, output = self.run("-c", code, entrypoint=["python"])
        assert status == 0, output


def train_in(pod: Pod, store: Path, plan: Path, shards: int) -> None:
    for shard in range(shards):
        began = time.monotonic()
        status, output = pod.run(
            *("worker", "--store", str(store), "--sweep", str(plan), "--shard", str(shard))
        )
        assert status == 0, output
        lines = output.strip().splitlines()
        print(f"pod of shard {shard}: {time.monotonic() - began:.1f} s, {lines[-1]}")


# --- comparing ---


def plan_of(text: str, name: str, folder: Path) -> tuple[str, Path, int]:
    """Id, plan file and number of shards of a sweep; the plan is as a ConfigMap holds it."""
    from fractal_k8s.sweep.assignment import Plan
    from fractal_k8s.sweep.deal import Deal, Dealt
    from fractal_k8s.sweep.definition import Sweep
    from fractal_k8s.sweep.load import parse_text

    sweep = Sweep.parse(parse_text(text, source=name))
    deal = Deal(points_per_shard=-(-sweep.num_points // 2))
    path = folder / f"{name}.json"
    path.write_text(Plan(sweep, deal).to_json())
    return sweep.id, path, Dealt(sweep, deal).num_shards


def compare(there: Path, here: Path, sweep_id: str) -> None:
    """Every number of the two stores, bit for bit, where the machine computes the same way."""
    from fractal_k8s.results.store import Store

    columns = ("i", "j", "state", "first_loss", "final_loss", "mean_loss", "ratio", "steps")
    rows, classes, commits = [], [], []
    for uri in (there, here):
        folder = Store(str(uri)).sweep(sweep_id)
        outcomes = folder.read_outcomes(folder.read_plan().sweep)
        assert not outcomes.problems, outcomes.problems
        table = outcomes.table
        classes.append(set(table.column("numerics_class").to_pylist()))
        commits.append(set(table.column("git_commit").to_pylist()))
        values = zip(
            *(table.column(name).to_pylist() for name in (*columns, "losses")), strict=True
        )
        rows.append(sorted(repr(value) for value in values))
    assert None not in commits[0], commits
    if classes[0] != classes[1]:
        print(f"{sweep_id}: {len(rows[0])} points; not compared: {classes[0]} and {classes[1]}")
        assert len(rows[0]) == len(rows[1])
    else:
        assert rows[0] == rows[1]
        print(f"{sweep_id}: {len(rows[0])} points, the same bits in the image and here")


def main() -> None:
    skip_unless_possible()
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    own, passed = arguments[:cut], arguments[cut + 1 :]
    if own not in ([], ["--rebuild-base"]):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="fractal-image-") as folder:
        work = Path(folder)
        work.chmod(0o755)
        if own or not has_image(BASE):
            timed("base image", lambda: make_base(work))
        build = [ROOT / "scripts/image", "--cpu", "--tag", IMAGE, "--", "--pull=never"]
        build += ["--build-arg", f"BASE={BASE}", *passed]
        timed("build", lambda: call(*build, cwd=ROOT))
        container = call("buildah", "from", "--pull-never", IMAGE)
        try:
            check(container, work)
        finally:
            call("buildah", "rm", container)


def check(container: str, work: Path) -> None:
    inspected = json.loads(call("buildah", "inspect", "--type", "image", IMAGE))
    config = inspected["OCIv1"]["config"]
    listed = json.loads(call("buildah", "images", "--json", IMAGE))
    check_config(config, listed[0]["size"])
    root = Path(call("buildah", "mount", container))
    check_content(root)
    shared = work / "shared"
    golden = shared / "golden"
    shutil.copytree(ROOT / "tests/golden/nanochat-d4", golden)
    store = shared / "store"
    store.mkdir()
    os.chown(store, USER, USER)
    pod = Pod(root, config, shared)
    pod.check_isolation()
    sys.path.insert(0, str(ROOT))
    for name, text in (("mlp", MLP), ("gpt", GPT.format(golden=golden))):
        sweep_id, plan, shards = plan_of(text, name, shared)
        worker = ("worker", "--store", str(store), "--sweep", str(plan), "--shard", "0")
        for after in (0.3, 1.0):
            pod.check_stopping(*worker, after=after)
        train_in(pod, store, plan, shards)
        for shard in range(shards):
            call(
                *(sys.executable, "-m", "fractal_k8s", "worker", "--shard", str(shard)),
                *("--store", work / "here", "--sweep", plan),
                cwd=ROOT,
            )
        compare(store, work / "here", sweep_id)


if __name__ == "__main__":
    main()
