"""A sweep from launch to map, through evictions, a lost pod and an API that goes away."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cluster.maps import assert_same_map, attempts, read, times_stored
from cluster.place import INDEX, Place, wait_for

POINT = re.compile(r"^\d\d:\d\d:\d\d \( *(\d+), *(\d+)\) .* points/s  ", re.MULTILINE)


def points_in(log: str) -> list[tuple[int, int]]:
    """Points that a worker's log says were trained."""
    return [(int(i), int(j)) for i, j in POINT.findall(log)]


def pod_in_training(place: Place, sweep_id: str, but: set[str], most: int) -> str:
    """A pod that has trained a point, and not yet all of its shard."""

    def look() -> str | None:
        for pod in place.pods(sweep_id, "Running"):
            if pod not in but and 0 < len(points_in(place.log(pod))) < most:
                return pod
        return None

    return wait_for("a pod in training", look)


def cut_short(place: Place, sweep_id: str) -> int:
    """How many attempts have stored a part of their shard."""
    return sum(len(attempt) < 32 for attempt in attempts(place.store, sweep_id))


def test_a_sweep_survives_its_cluster(
    place: Place, language_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Two evictions, a pod out of memory, an API that is away for 10 s; then what is left."""
    # on a real cluster it takes seconds to reach a pod, which must not have ended by then
    sweep = language_model("survivor", tokens=400 if place.standin else 1200)
    sent = place.launch(sweep, "--points-per-index", "32", "--job", "retries_per_index=0")
    sweep_id: str = sent["sweep"]
    assert (sent["indexes"], sent["parallelism"]) == (8, 4)
    watcher = place.start("launch", sweep, "--site", place.site, "--wait")

    hit: set[str] = set()
    while cut_short(place, sweep_id) < 2:
        pod = pod_in_training(place, sweep_id, hit, 24)
        place.evict(pod)
        hit.add(pod)
        wait_for("the end of the pod", lambda: pod not in place.pods(sweep_id) or None)  # noqa: B023
    wait_for("the first word of the watcher", lambda: watcher.told or None)
    lost = pod_in_training(place, sweep_id, hit, 24)
    place.run_out_of_memory(lost)
    index = place.get("pod", lost)["metadata"]["annotations"][INDEX]
    if place.standin is not None:
        place.standin.down()
        time.sleep(1)
        away = place.cli("status", sweep_id, code=2)
        assert f"cluster '{place.context}' does not answer" in away.stderr
        time.sleep(9)
        place.standin.up()

    told = watcher.end(code=1)
    assert "OOMKilled" in told
    assert f"fractal-k8s resume {sweep_id} --context {place.context}" in told
    job = place.get("job", sweep_id)
    assert job["status"]["failedIndexes"] == index
    lost_points = set(points_in(place.log(lost)))

    before = attempts(place.store, sweep_id)
    known = {point for attempt in before for point in attempt}
    resumed = place.cli("resume", sweep_id, "--points-per-index", "32", "--wait", "--json")
    facts = json.loads(resumed.stdout)
    assert facts["job"] == f"{sweep_id}-r2"
    assert facts["experiments"] == 256 - len(known)
    assert facts["summary"]["complete"]

    # none that had an outcome was trained again, and of the others only what was in flight
    stored = times_stored(place.store, sweep_id)
    assert len(stored) == 256
    assert set(stored.values()) == {1}
    printed = Counter(point for pod in place.pods(sweep_id) for point in points_in(place.log(pod)))
    twice = {point for point, count in printed.items() if count > 1}
    assert twice <= lost_points
    assert lost_points
    assert not lost_points & known

    local = f"{tmp_path}/here"
    place.cli("launch", sweep, "--backend", "inline", "--store", local, here=True)
    assert_same_map(read(place.store, sweep_id), read(local, sweep_id))


def test_what_render_prints_can_be_applied_by_hand(
    place: Place, network: Callable[..., Path], tmp_path: Path
) -> None:
    """render, kubectl apply, kubectl logs -f, kubectl get -l: no other command is needed."""
    sweep = network("by-hand")
    options = ("--site", place.site, "--points-per-index", "32")
    options += ("--job", f"namespace={place.namespace}")
    rendered = place.cli("render", sweep, *options, here=True).stdout
    place.kubectl("apply", "--server-side", "-f", "-", stdin=rendered)
    listed = place.kubectl("get", "jobs", "-l", "fractal-k8s.io/sweep", "-o", "name").split()
    (sweep_id,) = {name.removeprefix("job.batch/") for name in listed if "by-hand" in name}
    place.made.append(sweep_id)
    assert rendered.count(sweep_id) > 5

    begun = ("Running", "Succeeded")  # kubectl takes either pod, and fails on one that has not
    wait_for("both pods", lambda: sum(len(place.pods(sweep_id, p)) for p in begun) == 2 or None)
    log = place.kubectl("logs", "-f", f"job/{sweep_id}")
    assert len(points_in(log)) == 32
    assert re.search(r"^shard \w+-0000\d of by-hand-\w+: 32 points to train, 0 stored", log, re.M)
    place.kubectl("wait", "--for=condition=complete", "--timeout=120s", f"job/{sweep_id}")
    table = place.kubectl("get", "jobs", "-l", f"fractal-k8s.io/sweep={sweep_id}")
    assert "2/2" in table
    assert "Complete" in table

    told = place.cli("launch", sweep, "--site", place.site).stdout  # it is the same sweep
    assert "nothing was sent" in told
    local = f"{tmp_path}/here"
    place.cli("launch", sweep, "--backend", "inline", "--store", local, here=True)
    assert_same_map(read(place.store, sweep_id), read(local, sweep_id))
