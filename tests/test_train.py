"""One run: the numbers of a sweep's point, and everything around it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Run as RunCommand
from fractal_k8s.checkpoints.files import find_checkpoint
from fractal_k8s.checkpoints.nanochat import load_weights
from fractal_k8s.data.conversations import Row
from fractal_k8s.data.loader import Loader
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.models.gpt import GPT
from fractal_k8s.models.sample import Choice, generate
from fractal_k8s.stopping import Stopped, StopSignals
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.single import point_of, single
from fractal_k8s.train.events import Event, Noted, Stepped
from fractal_k8s.train.gpt import GPTTrainer
from fractal_k8s.train.materials import load_materials
from fractal_k8s.train.parallel import Ranks, open_ranks
from fractal_k8s.train.run import Habits, Run, as_stored
from fractal_k8s.train.run_folder import RunConfig, RunFolder

MakeSweep = Callable[..., Sweep]
PLAIN = Habits()
ONE = Ranks(0, 1, torch.device("cpu"))
SETTINGS = ["training.tokens=1000", "training.batch_size=2", "training.max_seq_len=100"]


def tiny(golden: Path) -> list[str]:
    """Options of a command that trains the golden checkpoint."""
    data = f"conversations:{golden}/conversations.jsonl"
    return ["--preset", "tiny", "--checkpoint", str(golden), "--dataset", data]


def start(
    folder: Path,
    sweep: Sweep,
    *,
    layout: Any = "artifact",
    resume: bool = False,
    listener: Callable[[Event], None] = lambda event: None,
) -> Run:
    config = RunConfig(sweep, layout)
    return Run(config, RunFolder(folder), ONE, listener, resume=resume)


def train(folder: Path, sweep: Sweep, habits: Habits = PLAIN, **options: Any) -> dict[str, Any]:
    with StopSignals() as signals:
        return start(folder, sweep, **options).train(habits, signals)


@pytest.fixture
def one(gpt_sweep: MakeSweep) -> Sweep:
    """A run of five steps."""
    return single(gpt_sweep().to_dict(), settings=SETTINGS, source="test")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(find_checkpoint(folder)).tensors


# --- the numbers of a point ---


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([], id="plain"),
        pytest.param(
            [
                "training.device_batch_size=1",
                "training.label_smoothing=0.1",
                "training.clip_norm=0.5",
                'training.data_order="shuffled"',
                'training.token_accounting="supervised"',
                "training.tokens=40",
                'training.optimizer="adamw"',
                'training.trainable_param_groups=["matrix", "embedding"]',
                "training.matrix_lr=1e-3",
            ],
            id="every option",
        ),
    ],
)
def test_a_run_makes_the_losses_of_a_sweeps_point(
    settings: list[str], gpt_sweep: MakeSweep, tmp_path: Path
) -> None:
    sweep = single(gpt_sweep().to_dict(), settings=[*SETTINGS, *settings], source="test")
    outcome = next(GPTTrainer(sweep).train([sweep.point(0)]))
    result = train(tmp_path / "run", sweep, Habits(save_every=2, samples=1))["result"]
    assert np.array(result["losses"], dtype=np.float32).tobytes() == outcome.losses.tobytes()
    for name in ("data_hash", "tokens_seen", "supervised_tokens", "ratio", "steps", "run_seed"):
        assert result[name] == getattr(outcome, name), name


def test_a_point_of_a_map_is_a_run_with_its_values_and_its_seed(gpt_sweep: MakeSweep) -> None:
    sweep = gpt_sweep("seed_policy=per-point", 'training.data_order="shuffled"')
    run = single(point_of(sweep, 1, 0), source="test")
    point = sweep.point(2)
    training = run.training_at(run.point(0))
    assert training == sweep.training_at(point)
    assert run.run_seed(run.point(0)) == sweep.run_seed(point) == sweep.spec.seed + 1000
    with pytest.raises(UsageError, match="rows 0 to 1, columns 0 to 1"):
        point_of(sweep, 2, 0)


def test_the_command_repeats_a_stored_point_bit_for_bit(run: RunCommand, golden: Path) -> None:
    files = [
        "--checkpoint",
        str(golden),
        "--dataset",
        f"conversations:{golden}/conversations.jsonl",
    ]
    short = [part for text in [*SETTINGS, "verdict.window=2"] for part in ("--set", text)]
    launched = run(
        "launch", "--preset", "tiny", "--res", "2", *files, *short, "--backend", "inline", "--json"
    )
    sweep_id = json.loads(launched.stdout)["sweep"]
    said = run("train", sweep_id, "--point", "0,1", "--out", "one", "--samples", "0").output
    assert "losses equal those of the stored point bit for bit (5 steps)" in said
    other = run("train", sweep_id, "--point", "1,1", "--out", "two", "--samples", "0", "--json")
    mine, theirs = json.loads(other.stdout), json.loads(Path("one/result.json").read_text())
    assert mine == json.loads(Path("two/result.json").read_text())
    assert mine["config"]["sweep"]["training"]["matrix_lr"] == 30.0
    assert mine["result"]["losses"][0] == theirs["result"]["losses"][0]
    assert mine["result"]["losses"] != theirs["result"]["losses"]
    assert mine["environment"]["numerics_class"]


def test_a_run_of_a_budget_in_flops_is_resumed_by_the_same_command(
    run: RunCommand, golden: Path
) -> None:
    budget = ["--set", "training.flops=4e9", "--set", "training.batch_size=2"]
    command = ("train", *tiny(golden), *budget, "--out", "one", "--samples", "0")
    run(*command)
    assert "resumed after 2 updates" in run(*command, "--resume").output


def test_a_run_of_a_budget_in_flops_is_the_point_it_was(gpt_sweep: MakeSweep) -> None:
    budget = {"knob": "flops", "low": 2e9, "high": 7e9}
    rate = {"knob": "matrix_lr", "low": 1e-3, "high": 1e-1}
    sweep = gpt_sweep("training.allow_repeats=true", axes={"y": rate, "x": budget})
    trainer = GPTTrainer(sweep)
    run = GPTTrainer(single(point_of(trainer.sweep, 1, 1), source="test"))
    theirs = next(trainer.train([trainer.sweep.point(3)]))
    ours = next(run.train([run.sweep.point(0)]))
    assert ours.losses.tobytes() == theirs.losses.tobytes()


# --- rows ---


def rows(count: int) -> list[Row]:
    return [Row((k, k, k), (False, True, k % 2 == 0)) for k in range(count)]


@pytest.mark.parametrize("count", [7, 8, 5])
def test_ranks_share_the_rows_of_every_step(count: int) -> None:
    size, ranks = 6, 3
    whole = Loader(rows(count), size)
    parts = [Loader(rows(count), size, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in range(2 * count):
        taken = [
            part.share[(step * part.share_size + k) % len(part.share)]
            for part in parts
            for k in range(part.share_size)
        ]
        assert taken == whole.rows_of(step)
        assert whole.num_labels(step) == sum(sum(row.trained[1:]) for row in taken)
    assert whole.state(3) == {"rows": count, "epoch": 18 // count, "next_row": 18 % count}


def test_held_out_rows_are_evaluated_and_not_trained(one: Sweep, tmp_path: Path) -> None:
    events: list[Event] = []
    everything = load_materials(one).rows.rows
    one = single(one.to_dict(), settings=["training.probe_rows=5"], source="test")
    run = start(tmp_path / "run", one, listener=events.append)
    assert run.finetune.held_out == everything[-5:]
    assert len(run.finetune.loader) == len(everything) - 5
    with StopSignals() as signals:
        result = run.train(Habits(eval_every=2, samples=2), signals)["result"]
    assert [step for step, _ in result["evaluations"]] == [0, 2, 4, 5]
    point = next(GPTTrainer(one).train([one.point(0)]))
    assert np.array(result["losses"], dtype=np.float32).tobytes() == point.losses.tobytes()
    assert (result["probe_before"], result["probe_after"]) == pytest.approx(
        (point.probe_before, point.probe_after), rel=1e-5
    )
    model = load_materials(single(one.to_dict(), source="test")).model
    total, labels = 0.0, 0
    for row in everything[-5:]:  # each by itself, so without padding
        ids = torch.tensor(row.ids)
        wanted = torch.where(torch.tensor(row.trained[1:]), ids[1:], -1)
        total += model.loss_sum(ids[None, :-1], wanted).item()
        labels += int((wanted >= 0).sum())
    assert result["evaluations"][0][1] == pytest.approx(total / labels, rel=1e-5)
    assert result["evaluations"][-1][1] < result["evaluations"][0][1]
    first = run.finetune.tokenizer.decode(list(everything[-5].ids))
    sample = result["samples"][0]
    assert first.removesuffix("<|assistant_end|>") == sample["prompt"] + sample["expected"]
    assert any("held-out rows" in line for event in events for line in event.lines())


# --- going on ---


def stopping_at(step: int) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return listen


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(one: Sweep, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", one)["result"]
    with pytest.raises(Stopped) as stop:
        train(tmp_path / "cut", one, listener=stopping_at(1))
    assert stop.value.number == signal.SIGTERM
    assert find_checkpoint(tmp_path / "cut").step == 2
    with pytest.raises(Stopped):
        train(tmp_path / "cut", one, listener=stopping_at(2), resume=True)
    events: list[Event] = []
    rest = train(tmp_path / "cut", one, listener=events.append, resume=True)["result"]
    assert [event.step for event in events if isinstance(event, Stepped)] == [3, 4]
    for name in ("losses", "data_hash", "tokens_seen", "supervised_tokens", "final_loss"):
        assert rest[name] == whole[name], name
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again = train(tmp_path / "cut", one, resume=True)["result"]  # is over: nothing is trained
    assert again["losses"] == whole["losses"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(one: Sweep, tmp_path: Path) -> None:
    whole = train(tmp_path / "run", one, Habits(save_every=1))["result"]
    folder = tmp_path / "run" / "checkpoints"
    model, state = folder / "model_000005.pt", folder / "optim_000004_rank0.pt"
    model.write_bytes(model.read_bytes()[:-1000])
    state.write_bytes(state.read_bytes()[:-1])
    events: list[Event] = []
    rest = train(tmp_path / "run", one, resume=True, listener=events.append)["result"]
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert [str(path) in note for path, note in zip((model, state), notes, strict=False)] == [
        True
    ] * 2
    assert notes[2] == "resumed after 3 updates"
    assert rest["losses"] == whole["losses"]
    for path in folder.glob("model_*.pt"):
        path.write_bytes(b"")
    with pytest.raises(CorruptError, match="no checkpoint is whole"):
        train(tmp_path / "run", one, resume=True)


def test_a_run_that_diverged_is_over(one: Sweep, tmp_path: Path) -> None:
    def explode(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 1:
            with torch.no_grad():
                run.finetune.parameters["lm_head.weight"].fill_(float("nan"))

    run = start(tmp_path / "run", one, listener=explode)
    with StopSignals() as signals:
        result = run.train(Habits(), signals)["result"]
    assert (result["state"], result["steps"], result["trainable"]) == ("diverged", 2, False)
    assert result["losses"][-1] is None
    assert result["final_loss"] is None
    assert train(tmp_path / "run", one, resume=True)["result"]["state"] == "diverged"


def test_what_is_trained_cannot_change_on_the_way(run: RunCommand, golden: Path) -> None:
    files = [
        "--checkpoint",
        str(golden),
        "--dataset",
        f"conversations:{golden}/conversations.jsonl",
    ]
    short = [part for text in SETTINGS for part in ("--set", text)]
    begin = ["train", "--preset", "tiny", *files, *short, "--out", "one", "--samples", "0"]
    run(*begin)
    assert "--resume" in run(*begin, code=2).output
    said = run(*begin, "--resume", "--set", "training.matrix_lr=0.5", "--eval-rows", "3", code=2)
    assert "training.matrix_lr: was 0.02, is 0.5" in said.output
    assert "training.probe_rows: was 0, is 3" in said.output
    said = run("train", "--out", "one", "--resume", "--set", "seed=1", code=2)
    assert "seed: was 42, is 1" in said.output
    run(*begin, "--resume")
    assert "holds no run" in run("train", "--out", "none", "--resume", code=2).output
    begin[begin.index("one")] = "none"
    assert "step 1/5" in run(*begin, "--resume").output  # so a pod can always say --resume
    Path("other.jsonl").write_text(Path(golden, "conversations.jsonl").read_text() * 2)
    said = run(
        "train", "--out", "one", "--resume", "--dataset", "conversations:other.jsonl", code=65
    )
    assert "was launched with" in said.output


# --- files ---


@pytest.mark.parametrize("layout", ["artifact", "nanochat"])
def test_the_model_can_be_trained_on_by_a_sweep(
    layout: str, one: Sweep, gpt_sweep: MakeSweep, tmp_path: Path
) -> None:
    result = train(tmp_path / "run", one, layout=layout)["result"]
    files = find_checkpoint(tmp_path / "run")
    place = "checkpoints" if layout == "artifact" else "chatsft_checkpoints/d4"
    assert files.model.parent == tmp_path / "run" / place
    assert result["checkpoint"] == str(files.model)
    meta = json.loads(files.meta.read_text())
    assert (meta["step"], meta["final_loss"]) == (5, result["final_loss"])
    assert {"converged", "stable", "trainable_ratio", "matrix_lr", "tokens_seen"} <= meta.keys()
    assert weights(tmp_path / "run")["transformer.wte.weight"].dtype == torch.bfloat16
    trainer = GPTTrainer(gpt_sweep(checkpoint=str(tmp_path / "run")))
    point = next(trainer.train([trainer.sweep.point(0)]))
    assert point.first_loss < result["first_loss"]


def test_a_trained_embedding_keeps_its_precision() -> None:
    name = "transformer.wte.weight"
    assert as_stored(name, torch.full((2,), 0.5)).dtype == torch.bfloat16
    assert as_stored(name, torch.full((2,), 0.1)).dtype == torch.float32
    assert as_stored("lm_head.weight", torch.full((2,), 0.5)).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--preset", "tanh"], "fine-tune", id="another model"),
        pytest.param(["--preset", "tiny", "--res", "3"], "needs --point", id="res alone"),
        pytest.param(["--preset", "tiny", "--eval-every", "3"], "--eval-rows", id="no rows"),
        pytest.param(["--preset", "tiny", "--point", "3"], "ROW,COLUMN", id="no point"),
        pytest.param(["--preset", "tiny", "--set", "axes.y.low=1"], "axes", id="axes"),
        pytest.param(["--preset", "tiny", "--set", "training.tokens=0"], "tokens", id="value"),
        pytest.param(["--preset", "tiny", "--set", "training.tokns=1"], "tokens", id="typing"),
        pytest.param(["--preset", "tiny", "--wandb-artifact", "x"], "--wandb", id="artifact"),
        pytest.param(
            ["--preset", "tiny", "--eval-rows", "64"], "nothing to train on", id="nothing left"
        ),
        pytest.param(["nowhere"], "nowhere", id="unknown sweep"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    arguments: list[str], words: str, run: RunCommand, golden: Path
) -> None:
    files = [
        "--checkpoint",
        str(golden),
        "--dataset",
        f"conversations:{golden}/conversations.jsonl",
    ]
    assert words in run("train", *arguments, *files, "--out", "one", code=2).output
    assert not Path("one").exists()


def test_rows_that_cannot_be_shared_evenly_are_refused(one: Sweep, tmp_path: Path) -> None:
    for settings, words in (
        (["training.batch_size=8"], "multiple of 3"),
        (["training.batch_size=12", "training.device_batch_size=3"], "does not divide"),
    ):
        sweep = single(one.to_dict(), settings=settings, source="test")
        with pytest.raises(UsageError, match=words):
            Run(
                RunConfig(sweep, "artifact"),
                RunFolder(tmp_path / "run"),
                Ranks(0, 3, torch.device("cpu")),
                lambda event: None,
            )
    assert not (tmp_path / "run").exists()


# --- several processes ---

ROOT = Path(__file__).parents[1]


def test_a_part_of_torchrun_s_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(UsageError, match="start several processes with torchrun"),
        open_ranks(),
    ):
        pass


def torchrun(*program: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *program,
    ]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def test_two_processes_train_what_one_trains(golden: Path, one: Sweep, tmp_path: Path) -> None:
    calm = single(one.to_dict(), settings=["training.matrix_lr=1e-3"], source="test")
    alone = train(tmp_path / "alone", calm)["result"]
    sweep = tmp_path / "one.json"
    sweep.write_text(json.dumps(calm.to_dict()))
    command = torchrun("-m", "fractal_k8s", "train", str(sweep), "--out", "two", "--samples=1")
    done = subprocess.run(
        [*command, "--eval-rows=0", "--save-every=3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "two" / "result.json").read_text())["result"]
    assert result["ranks"] == 2
    for name in ("tokens_seen", "supervised_tokens", "data_hash", "steps"):
        assert result[name] == alone[name], name
    apart = np.abs(np.array(result["losses"]) / np.array(alone["losses"]) - 1)
    assert apart[:2].max() < 1e-5
    assert apart.max() < 1e-4  # Muon in bfloat16 widens what rounding begins
    assert done.stdout.count("step 5/5") == 1  # the other rank is quiet


def test_a_rank_that_dies_ends_the_others(golden: Path, tmp_path: Path) -> None:
    more = (
        "--set",
        "training.tokens=9000000",
        "--allow-repeats",
        "--samples=0",
        "--save-every=2",
        "--out=two",
    )
    with subprocess.Popen(
        torchrun("-m", "fractal_k8s", "train", *tiny(golden), *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    ) as agent:
        assert agent.stdout is not None
        for line in agent.stdout:
            if line.startswith("saved"):
                break
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        said = agent.communicate()[1]
    assert agent.returncode != 0
    assert "another rank is gone" in said
    assert "--resume" in said


_PLANTED = """
import sys
from pathlib import Path
from fractal_k8s.errors import FractalError
from fractal_k8s.sweep.load import read_raw
from fractal_k8s.sweep.single import single
from fractal_k8s.train.finetune import FineTune
from fractal_k8s.train.parallel import open_ranks
with open_ranks() as ranks:
    finetune = FineTune(single(read_raw(Path(sys.argv[1])), source="test"), ranks)
    finetune.update()
    finetune.check_ranks()
    if ranks.rank == 1:
        finetune.parameters["lm_head.weight"].data[0, 0] += 1e-6
    try:
        finetune.check_ranks()
    except FractalError as error:
        Path(f"rank{ranks.rank}").write_text(str(error))
threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
Path(f"threads{ranks.rank}").write_text(" ".join(threads))
"""


def test_ranks_whose_weights_differ_are_found_out(one: Sweep, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(one.to_dict()))
    (tmp_path / "planted.py").write_text(_PLANTED)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "planted.py", "one.json"],
            cwd=tmp_path,
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in (0, 1)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    for rank in (0, 1):
        said = (tmp_path / f"rank{rank}").read_text()
        assert f"weights at step 1: rank {rank} holds something else than rank {1 - rank}" in said
        # one that is left may abort the process as it exits
        threads = (tmp_path / f"threads{rank}").read_text()
        assert "gloo" not in threads
        assert "tcpstore" not in threads


# --- signals ---


def test_a_stopped_command_says_how_to_go_on(golden: Path, tmp_path: Path) -> None:
    more = ("--set", "training.tokens=9000000", "--allow-repeats", "--samples=0", "--out=one")
    command = [sys.executable, "-m", "fractal_k8s", "train", *tiny(golden), *more]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment()
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.lstrip().startswith("step"):
                break
        process.send_signal(signal.SIGINT)
        said = process.communicate()[0]
    assert process.returncode == 130
    assert f"continue with: fractal-k8s train --out {tmp_path}/one --resume" in said
    assert find_checkpoint(tmp_path / "one").step >= 1


# --- samples ---


@pytest.fixture(scope="module")
def model(golden: Path) -> GPT:
    files = find_checkpoint(golden)
    loaded = load_weights(files)
    from fractal_k8s.models.gpt import config_from_dict

    return GPT.from_weights(
        config_from_dict(loaded.model_config),
        {name: tensor.float() for name, tensor in loaded.tensors.items()},
        compute_dtype=torch.float32,
    )


PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [300, 301], [9]]


def test_greedy_answers_are_those_of_one_prompt_at_a_time(model: GPT) -> None:
    together = generate(model, PROMPTS, limits=[6, 9, 0], stop_ids=[1023])
    assert [len(answer) for answer in together] == [6, 9, 0]
    for prompt, answer in zip(PROMPTS, together, strict=True):
        ids = list(prompt)
        for _ in answer:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert ids[len(prompt) :] == answer
    stop = together[1][4]
    first = together[1].index(stop)
    cut = generate(model, PROMPTS, limits=[6, 9, 0], stop_ids=[stop])
    assert cut[1] == together[1][:first]


def test_drawn_answers_follow_the_seed_and_the_likeliest(model: GPT) -> None:
    def drawn(seed: int, top_k: int | None) -> list[list[int]]:
        choice = Choice(temperature=1.5, top_k=top_k, seed=seed)
        return generate(model, PROMPTS, limits=[8, 8, 8], stop_ids=[1023], choice=choice)

    assert drawn(1, None) == drawn(1, None) != drawn(2, None)
    greedy = generate(model, PROMPTS, limits=[8, 8, 8], stop_ids=[1023])
    assert drawn(1, 1) == greedy
