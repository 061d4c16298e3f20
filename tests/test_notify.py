"""Messages to a chat: what is sent, once, without the address in any text."""

from __future__ import annotations

import email.utils
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from conftest import Run
from fractal_k8s import notify
from fractal_k8s.aggregate import once
from fractal_k8s.aggregate.announce import announce_failed, publish
from fractal_k8s.aggregate.every import aggregate_all
from fractal_k8s.aggregate.once import do_once
from fractal_k8s.aggregate.until import JobsState, Watch, aggregate_until
from fractal_k8s.environ import WEBHOOK_VARIABLE, without_secrets
from fractal_k8s.errors import IncompleteError
from fractal_k8s.results.store import Store, SweepStore
from standin.serving import running
from test_aggregate import ALL, PLAN, SWEEP, folder, put
from test_aggregate import passed as aggregated

__all__ = ["folder"]  # a fixture


class Chat:
    """A server that takes messages; `statuses` are its next answers, 200 after them."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.kinds: list[str | None] = []
        self.statuses: list[int] = []
        # what is sent with a status that is not 200
        self.retry_after: str | None = None
        self.pause_s = 0.0
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # name of the class
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(chat.pause_s)
                status = chat.statuses.pop(0) if chat.statuses else 200
                if status == 200:
                    chat.texts.append(json.loads(body)["text"])
                    chat.kinds.append(self.headers["Content-Type"])
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                elif status != 200 and chat.retry_after is not None:
                    self.send_header("Retry-After", chat.retry_after)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/T0/B0/very-secret-path"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    here = Chat()
    monkeypatch.setenv(WEBHOOK_VARIABLE, here.url)
    with running(here.server):
        yield here


def test_the_end_of_a_sweep_is_told_once(chat: Chat, folder: SweepStore, run: Run) -> None:
    put(folder, range(30))
    typed = ("aggregate", SWEEP.id, "--store", folder.files.uri)
    until = (*typed, "--until-complete", "--patience", "0", "--every", "0.1")
    run(*typed, code=1)
    assert chat.texts == []  # workers may still add to it
    run(*until, code=1)
    run(*until, code=1)
    (text,) = chat.texts
    assert text.startswith(f"{SWEEP.id}: ended with holes: 12 points are missing and 0 failed")
    assert chat.kinds == ["application/json"]
    put(folder, ALL, "rest")
    for _ in range(2):
        output = run(*typed).output
        assert "very-secret" not in output
    assert len(chat.texts) == 2
    assert chat.texts[1].startswith(f"{SWEEP.id}: complete\ntrainable ")
    for path in Path(folder.files.uri).rglob("*"):
        assert not path.is_file() or b"very-secret" not in path.read_bytes(), path


def test_what_a_pass_that_was_killed_has_left_is_not_told(chat: Chat, folder: SweepStore) -> None:
    """Its numbers without its manifest: nobody has seen to it that they are of one pass."""
    put(folder, range(30))
    aggregated(folder)
    name = folder.key("summary", "analysis.json")
    summary = json.loads(folder.files.get(name) or b"")
    folder.files.put(name, json.dumps({**summary, "complete": True}).encode())
    publish(folder, PLAN, print, has_ended=True)
    (text,) = chat.texts
    assert text.startswith(f"{SWEEP.id}: ended with holes: 12 points are missing")


def test_failed_indexes_are_told_once_a_job(chat: Chat, folder: SweepStore) -> None:
    for text in ("1 of 8 indexes have failed", "2 of 8 indexes have failed"):
        announce_failed(folder, {"job": text}, print)
    announce_failed(folder, {"job-r2": "1 of 2 indexes have failed"}, print)
    assert chat.texts == [
        f"{SWEEP.id}: 1 of 8 indexes have failed",
        f"{SWEEP.id}: 1 of 2 indexes have failed",
    ]


@pytest.mark.parametrize("what", [SWEEP.id, "--all"])
def test_what_could_not_be_told_is_told_later(
    what: str, chat: Chat, folder: SweepStore, run: Run
) -> None:
    put(folder, ALL)
    chat.statuses = [500, 500]
    typed = ("aggregate", what, "--store", folder.files.uri)
    assert "the webhook could not be told: the server answered 500" in run(*typed).output
    for _ in range(2):  # nothing new is stored
        run(*typed)
    assert len(chat.texts) == 1


def test_old_sweeps_are_not_told_of_where_a_webhook_is_new(
    folder: SweepStore, chat: Chat, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, ALL)
    typed = ("aggregate", "--all", "--store", folder.files.uri)
    with monkeypatch.context() as before:
        before.delenv(WEBHOOK_VARIABLE)
        run(*typed)
    a_week_ago = time.time() - 7 * 86_400
    for path in Path(folder.files.uri, SWEEP.id, "summary").iterdir():
        os.utime(path, (a_week_ago, a_week_ago))
    run(*typed)
    assert chat.texts == []


# --- once ---

TELL = """
import sys
from fractal_k8s.aggregate.announce import announce_failed
from fractal_k8s.results.store import Store
announce_failed(Store(sys.argv[1]).sweep(sys.argv[2]), {"job": "2 of 8 have failed"}, print)
"""


def test_processes_that_tell_at_once_tell_once(chat: Chat, folder: SweepStore) -> None:
    chat.pause_s = 0.3
    typed = [sys.executable, "-c", TELL, folder.files.uri, SWEEP.id]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [subprocess.Popen(typed, env=environment) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(chat.texts) == 1


def test_what_somebody_is_at_is_left_to_him(folder: SweepStore) -> None:
    done = []

    def act() -> bool:
        do_once(folder, "end", "1 0", act)  # as another process would
        done.append("1 0")
        return True

    do_once(folder, "end", "1 0", act)
    do_once(folder, "end", "1 0", act)
    assert done == ["1 0"]
    do_once(folder, "end", "0 0", lambda: bool(done.append("0 0")))
    do_once(folder, "end", "0 0", lambda: bool(done.append("again")))
    assert done == ["1 0", "0 0", "again"]  # what did not work is tried again


def test_who_was_killed_does_not_stop_others(
    folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> bool:
        raise SystemExit

    with monkeypatch.context() as killed:
        killed.setattr(once, "_release", lambda folder, claim: None)
        with pytest.raises(SystemExit):
            do_once(folder, "end", "", die)
    done: list[str] = []
    do_once(folder, "end", "", lambda: bool(done.append("too early")))
    assert done == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    for _ in range(2):  # the first one makes room
        do_once(folder, "end", "", lambda: not done.append("told"))
    assert done == ["told"]


# --- failed indexes ---


def failing(is_over: bool, *, job: str = "job") -> Callable[[str], JobsState]:
    return lambda sweep_id: JobsState(is_over, {job: f"3 of 8 indexes of {job} have failed"})


def passes(folder: SweepStore, jobs: Callable[[str], JobsState]) -> list[str]:
    visits = aggregate_all(Store(folder.files.uri), allow_mixed=False, say=print, jobs=jobs)
    return [visit.state for visit in visits]


def test_the_cronjob_tells_of_indexes_that_fail_after_the_last_outcome(
    chat: Chat, folder: SweepStore
) -> None:
    assert passes(folder, failing(False)) == ["nothing stored"]
    assert chat.texts == [f"{SWEEP.id}: 3 of 8 indexes of job have failed"]
    put(folder, range(30))
    assert passes(folder, failing(False, job="job-r2")) == ["partial"]
    assert passes(folder, failing(False, job="job-r2")) == ["unchanged"]
    assert passes(folder, failing(False, job="job-r3")) == ["unchanged"]
    assert [text.split()[6] for text in chat.texts] == ["job", "job-r2", "job-r3"]
    for _ in range(2):
        assert passes(folder, failing(True, job="job-r3")) == ["unchanged"]
    assert chat.texts[3].startswith(f"{SWEEP.id}: ended with holes: 12 points are missing")
    assert len(chat.texts) == 4


def test_the_cronjob_asks_nothing_about_complete_sweeps(folder: SweepStore) -> None:
    asked: list[str] = []

    def jobs(sweep_id: str) -> JobsState:
        asked.append(sweep_id)
        return JobsState(True, {})

    put(folder, ALL)
    passes(folder, jobs)
    assert asked == [SWEEP.id]
    passes(folder, jobs)
    assert asked == [SWEEP.id]


def test_the_job_tells_also_where_no_worker_has_stored_anything(chat: Chat, tmp_path: Path) -> None:
    jobs = failing(True)
    watch = Watch(every_s=0.01, patience_s=0.0, jobs=jobs)
    with pytest.raises(IncompleteError):
        aggregate_until(Store(str(tmp_path)), SWEEP.id, watch, allow_mixed=False, say=print)
    assert chat.texts == [f"{SWEEP.id}: 3 of 8 indexes of job have failed"]


# --- the message ---


def test_text_is_text_and_no_markup(chat: Chat) -> None:
    assert notify.send("1 < 2 & <!channel>") is None
    assert chat.texts == ["1 &lt; 2 &amp; &lt;!channel&gt;"]


def test_a_secret_from_a_file_may_end_with_a_line(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEBHOOK_VARIABLE, f"{chat.url}\n")
    assert notify.send("hello") is None
    assert "secret" not in without_secrets(f"posted to {chat.url}")


def test_a_server_that_is_asked_too_often_is_left_alone_for_as_long_as_it_says(chat: Chat) -> None:
    chat.statuses, chat.retry_after = [429], "1"
    began = time.monotonic()
    assert notify.send("hello") is None
    assert time.monotonic() - began >= 1.0
    assert chat.texts == ["hello"]
    chat.statuses, chat.retry_after = [503], email.utils.formatdate(time.time() - 5, usegmt=True)
    assert notify.send("hello") is None
    for wanted in ("3600", email.utils.formatdate(time.time() + 3600, usegmt=True)):
        chat.statuses, chat.retry_after = [429, 200], wanted
        said = notify.send("hello") or ""
        assert said.startswith("the server answered 429 and wants to be asked again in 3,")
        assert chat.statuses == [200]  # not asked again
    chat.statuses, chat.retry_after = [429, 429], "0"
    assert notify.send("hello") == "the server answered 429"


def test_a_server_that_stumbles_is_asked_twice(chat: Chat) -> None:
    chat.statuses = [503]
    assert notify.send("hello") is None
    assert chat.texts == ["hello"]


@pytest.mark.parametrize(("status", "left"), [(404, 1), (302, 1)])
def test_an_address_that_is_wrong_is_not_tried_again(chat: Chat, status: int, left: int) -> None:
    chat.statuses = [status, 200]
    assert notify.send("hello") == f"the server answered {status}"
    assert len(chat.statuses) == left
    assert chat.texts == []


def test_a_server_that_hangs_is_left(chat: Chat) -> None:
    chat.pause_s = 0.6
    assert notify.send("hello", seconds=0.1) == "no answer in time"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:9/very-secret", "the connection was refused"),
        ("http://no-such-host.invalid/very-secret", "its host is not known"),
        ("file:///etc/very-secret", "FRACTAL_K8S_WEBHOOK is no http:// or https:// address"),
        ("http://[very-secret", "ValueError"),
        ("http://very secret/", "InvalidURL"),
    ],
)
def test_no_reason_holds_the_address(url: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEBHOOK_VARIABLE, url)
    assert notify.send("hello") == why
    assert "secret" not in without_secrets(f"posted to {url}")


def test_without_an_address_nothing_is_wanted() -> None:
    assert not notify.is_wanted()
