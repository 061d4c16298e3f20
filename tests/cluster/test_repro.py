"""Points of a map trained again on the cluster: the same bits, beside the sweep and not in it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.maps import times_stored
from cluster.place import Place, wait_for
from fractal_k8s.results.store import Store


def test_a_map_is_certified_by_a_job_of_its_own(
    place: Place, language_model: Callable[..., Path]
) -> None:
    sweep = language_model("again", size=4)
    sent = place.launch(sweep, "--points-per-index", "8", "--wait")
    name: str = sent["sweep"]
    selector = f"fractal-k8s.io/sweep={name},app.kubernetes.io/component=repro"

    def jobs() -> list[Any]:
        return list((place.get("jobs", "-l", selector) or {"items": []})["items"])

    command = ("repro", name, "--sample", "4")

    waiting = place.start(*command)
    wait_for("the Job", lambda: jobs() or None)
    wait_for("the first word", lambda: "0 of 4 points" in waiting.told or None)
    waiting.process.send_signal(signal.SIGINT)
    told = waiting.end(code=130)
    assert f"go on       fractal-k8s repro {name} --sample 4 --context {place.context}" in told
    (job,) = jobs()
    assert place.status(name)["jobs"][0]["name"] == name
    assert job["metadata"]["name"] not in place.cli("list").stdout

    done = place.cli(*command, "--json")
    assert f"again by the Job {job['metadata']['name']}, sent at" in done.stderr
    note = json.loads(done.stdout)
    assert (note["equal"], note["compared"], note["is_certificate"]) == (4, 4, True)
    assert note["line"] in place.cli("analyze", name, "--store", place.store, here=True).stdout

    # it has gone, and what it trained are no outcomes of the sweep
    assert jobs() == []
    assert set(times_stored(place.store, name).values()) == {1}
    place.cli("delete", name, "--results", "--confirm", name, "--store", place.store)
    assert Store(place.store).files.entries(name) == []
