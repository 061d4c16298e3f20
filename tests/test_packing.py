"""Rows end to end: documents that do not see each other, in few sizes, with the padded numbers."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal_k8s.data.conversations import Row
from fractal_k8s.models import attention
from fractal_k8s.models.attention import Packed
from fractal_k8s.models.gather import gather_at
from fractal_k8s.models.gpt import GPT, GPTConfig
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.batches import Batches, MicroBatch, pad
from fractal_k8s.train.gpt import GPTTrainer
from fractal_k8s.train.packing import bucket, pack

MakeSweep = Callable[..., Sweep]

CPU = torch.device("cpu")
VOCABULARY = 97
LONGEST = 40


def row(length: int, seed: int = 0, labels: int = 3) -> Row:
    """A row of that many positions, trained at its end."""
    random = np.random.default_rng([length, seed])
    ids = tuple(random.integers(0, VOCABULARY, length + 1).tolist())
    return Row(ids, tuple(k > length - labels for k in range(length + 1)))


def toy(*, n_kv_head: int = 2, checkpointing: bool = False) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(
        sequence_len=LONGEST,
        vocab_size=VOCABULARY,
        n_layer=2,
        n_head=2,
        n_kv_head=n_kv_head,
        n_embd=32,
    )
    model = GPT(config, gradient_checkpointing=checkpointing)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    return model


def gradients(model: GPT, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The mean loss, and its gradient by name."""
    model.zero_grad()
    loss = model.loss_sum(batch.ids, batch.labels, batch.places, batch.layout) / batch.num_labels
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), found


def documents(model: GPT, rows: list[Row]) -> list[torch.Tensor]:
    """The final residual stream of each row of a packed batch, (length, n_embd) each."""
    batch = pack(rows, 0, CPU)
    with torch.no_grad():
        hidden = model.hidden(batch.ids, batch.layout)[0]
    assert isinstance(batch.layout, Packed)
    return list(hidden.split(batch.layout.lengths))[: len(rows)]


lengths = st.lists(st.integers(1, LONGEST), min_size=1, max_size=8)

CASES = [
    pytest.param([9, 33, 5, 18], id="several rows"),
    pytest.param([23], id="one row"),
    pytest.param([LONGEST], id="as long as the model takes"),
    pytest.param([1, 1, 20, 1], id="documents of one id"),
    pytest.param([1], id="one id"),
    pytest.param([15], id="one position short of a bucket"),
    pytest.param([7] * 40, id="more rows than the fewest documents"),
]


# --- the same numbers as padded ---


@pytest.mark.parametrize("n_kv_head", [1, 2])
@pytest.mark.parametrize("sizes", CASES)
def test_logits_are_those_of_padded_rows(sizes: list[int], n_kv_head: int) -> None:
    model = toy(n_kv_head=n_kv_head)
    rows = [row(length, seed) for seed, length in enumerate(sizes)]
    with torch.no_grad():
        padded = model(pad(rows, 0, CPU).ids)
        packed = [model.logits(hidden) for hidden in documents(model, rows)]
    for number, length in enumerate(sizes):
        torch.testing.assert_close(packed[number], padded[number, :length], rtol=0, atol=1e-5)


@pytest.mark.parametrize("at_labels", [True, False])
@pytest.mark.parametrize("sizes", CASES)
def test_loss_and_gradients_are_those_of_padded_rows(sizes: list[int], at_labels: bool) -> None:
    model = toy()
    rows = [row(length, seed) for seed, length in enumerate(sizes)]
    loss, expected = gradients(model, pad(rows, 0, CPU))
    batch = pack(rows, 0, CPU, at_labels=at_labels)
    assert (batch.places is None) is not at_labels
    found_loss, found = gradients(model, batch)
    torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_label_smoothing_leaves_out_what_fills_a_batch_up() -> None:
    model, rows = toy(), [row(9), row(30)]
    losses = [
        model.loss_sum(batch.ids, batch.labels, batch.places, batch.layout, label_smoothing=0.1)
        for batch in (pack(rows, 0, CPU), pad(rows, 0, CPU))
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


@pytest.mark.parametrize("n_kv_head", [1, 2])
@pytest.mark.parametrize("sizes", CASES)
def test_documents_side_by_side_attend_like_documents_apart(
    sizes: list[int], n_kv_head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does in float32, where there is no flash kernel."""
    model = toy(n_kv_head=n_kv_head)
    batch = pack([row(length, seed) for seed, length in enumerate(sizes)], 0, CPU)
    loss, expected = gradients(model, batch)
    monkeypatch.setattr(attention, "_attend_apart", attention._attend_side_by_side)
    found_loss, found = gradients(model, batch)
    torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=0)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_twenty_steps_of_a_fine_tune_have_the_padded_losses(gpt_sweep: MakeSweep) -> None:
    """At calm rates: Muon rounds to bfloat16, and at higher ones that is what grows."""
    losses = {}
    for packing in ("packed", "padded"):
        sweep = gpt_sweep(
            f"training.packing={packing}",
            "training.tokens=8000",
            "training.batch_size=4",
            "axes.y.low=1e-4",
            resolution=2,
        )
        trainer = GPTTrainer(sweep)
        outcome = next(trainer.train([sweep.point(0)]))
        assert f" float32 {packing}" in trainer.environment.numerics_class
        losses[packing] = outcome
    packed, padded = losses["packed"], losses["padded"]
    assert len(packed.losses) == 20
    assert packed.losses[-1] < 0.8 * packed.losses[0]
    np.testing.assert_allclose(packed.losses, padded.losses, rtol=1e-5)
    assert packed.losses.tobytes() != padded.losses.tobytes()
    for fact in ("tokens_seen", "supervised_tokens", "data_hash", "steps"):
        assert getattr(packed, fact) == getattr(padded, fact)


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_a_step_in_parts_is_that_of_the_whole_batch(packing: str, gpt_sweep: MakeSweep) -> None:
    losses = []
    for part in ("6", "1"):
        sweep = gpt_sweep(
            f"training.packing={packing}",
            f"training.device_batch_size={part}",
            "training.batch_size=6",
            "training.tokens=1800",
        )
        losses.append(next(GPTTrainer(sweep).train([sweep.point(0)])).losses)
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_bfloat16_packed_stays_near_padded(gpt_sweep: MakeSweep) -> None:
    packed, padded = (
        next(GPTTrainer(sweep).train([sweep.point(0)])).losses
        for packing in ("packed", "padded")
        for sweep in [gpt_sweep(f"training.packing={packing}", "training.dtype=bfloat16")]
    )
    np.testing.assert_allclose(packed, padded, rtol=0.02)


# --- documents do not see each other ---


@settings(max_examples=25)
@given(sizes=lengths, data=st.data())
def test_a_document_never_sees_another(sizes: list[int], data: st.DataObject) -> None:
    model = toy()
    rows = [row(length, seed) for seed, length in enumerate(sizes)]
    changed = data.draw(st.integers(0, len(rows) - 1))
    others = list(rows)
    others[changed] = row(sizes[changed], seed=1000)
    for number, (before, after) in enumerate(
        zip(documents(model, rows), documents(model, others), strict=True)
    ):
        same = before.numpy().tobytes() == after.numpy().tobytes()
        assert same is (number != changed or rows[number].ids[:-1] == others[number].ids[:-1])


@settings(max_examples=25)
@given(sizes=lengths, data=st.data())
def test_the_order_of_the_neighbours_is_irrelevant(sizes: list[int], data: st.DataObject) -> None:
    model = toy()
    rows = [row(length, seed) for seed, length in enumerate(sizes)]
    order = data.draw(st.permutations(range(len(rows))))
    found = documents(model, [rows[k] for k in order])
    expected = documents(model, rows)
    for place, k in enumerate(order):
        torch.testing.assert_close(found[place], expected[k], rtol=0, atol=1e-5)


@settings(max_examples=10)
@given(sizes=lengths)
def test_what_fills_a_batch_up_changes_no_bit(sizes: list[int]) -> None:
    model = toy()
    rows = [row(length, seed) for seed, length in enumerate(sizes)]
    loss, expected = gradients(model, pack(rows, 0, CPU))
    other_loss, found = gradients(model, pack(rows, 50, CPU))
    assert torch.equal(loss, other_loss)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name


# --- shapes ---


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=60), data=st.data())
def test_a_packed_batch_is_whole(sizes: list[int], data: st.DataObject) -> None:
    rows = [row(length, seed) for seed, length in enumerate(sizes)]
    longest = data.draw(st.integers(max(sizes), 2 * max(sizes)))
    batch = pack(rows, 0, CPU, longest=longest)
    layout = batch.layout
    assert isinstance(layout, Packed)
    offsets = layout.offsets.tolist()
    total = batch.ids.size(1)
    assert layout.offsets.dtype == torch.int32
    assert sum(layout.lengths) == total == offsets[-1] == len(layout.positions)
    assert [n for n in np.diff(offsets) if n] == layout.lengths
    assert layout.lengths[: len(sizes)] == sizes
    assert max(layout.lengths) <= layout.longest == max(longest, 16)
    # a compiled program must not meet another number of documents
    assert len(offsets) - 1 == max(14, len(sizes) + len(sizes) // 16 + 1)
    for number, start in enumerate(offsets[: len(sizes)]):
        piece = slice(start, start + sizes[number])
        assert batch.ids[0, piece].tolist() == list(rows[number].ids[:-1])
        assert layout.positions[piece].tolist() == list(range(sizes[number]))
    assert batch.places is not None
    assert batch.places.diff().ge(0).all()
    real = batch.labels >= 0
    assert int(real.sum()) == batch.num_labels == pad(rows, 0, CPU).num_labels
    everywhere = pack(rows, 0, CPU, longest=longest, at_labels=False)
    assert torch.equal(everywhere.labels[batch.places], batch.labels)
    # what is left over lies on padding
    assert (batch.places[~real] == total - 1).all()
    assert total > sum(sizes)


def test_buckets_are_few_and_waste_little() -> None:
    counts = np.random.default_rng(0).normal(48 * 393, 48**0.5 * 200, 1000).astype(int)
    totals = np.array([bucket(int(count) + 1, 16) for count in counts])
    assert (totals > counts).all()
    assert (totals / counts - 1).mean() < 0.04
    assert (totals / counts - 1).max() < 0.07
    assert len(set(totals)) <= 12
    assert bucket(19_001, 16) == 19_456
    assert bucket(300, 4) == 320
    assert {bucket(count, 16) for count in range(1, 17)} == {16}
    for octave in (256, 1024, 32_768):
        sizes = {bucket(count, 16) for count in range(octave, 2 * octave)}
        assert len(sizes) <= 17


def test_labels_everywhere_get_no_more_places_than_positions() -> None:
    rows = [row(40, seed, labels=40) for seed in range(7)]
    batch = pack(rows, 0, CPU)
    assert batch.num_labels == 280
    assert batch.places is not None
    assert len(batch.places) == batch.ids.size(1) == 288


def test_every_batch_of_a_run_has_the_same_number_of_documents_and_bound() -> None:
    rows = [row(length) for length in (5, 9, 300, 12, 40, 7)]
    batches = Batches(rows, 2, 0, CPU)
    layouts = [part.layout for step in range(3) for part in batches[step].parts]
    packed = [layout for layout in layouts if isinstance(layout, Packed)]
    assert {(layout.longest, len(layout.offsets)) for layout in packed} == {(300, 15)}


@pytest.mark.parametrize("part_size", [None, 3, 1])
def test_counts_and_digests_are_those_of_padded_rows(part_size: int | None) -> None:
    rows = [row(length) for length in (5, 9, 30, 12, 40, 7, 8)]
    packed, padded = (
        Batches(rows, 3, 0, CPU, part_size=part_size, packing=packing)
        for packing in ("packed", "padded")
    )
    for step in range(7):
        for fact in ("num_tokens", "num_labels", "digest"):
            assert getattr(packed[step], fact) == getattr(padded[step], fact)
        assert [part.num_labels for part in packed[step].parts] == [
            part.num_labels for part in padded[step].parts
        ]


def test_a_document_beyond_the_rotary_tables_is_refused() -> None:
    batch = pack([row(10 * LONGEST + 1)], 0, CPU)
    with pytest.raises(ValueError, match="401 positions, the rotary tables have 400"):
        toy().hidden(batch.ids, batch.layout)


# --- parts of the model ---


def test_the_gathers_gradient_is_index_selects() -> None:
    torch.manual_seed(0)
    rows = torch.randn(50, 8, requires_grad=True)
    places = torch.tensor([0, 3, 4, 20, 49, 49, 49])
    weights = torch.randn(7, 8)
    weights[5:] = 0  # as of labels that are -1
    (gather_at(rows, places) * weights).sum().backward()
    found, rows.grad = rows.grad, None
    (rows.index_select(0, places) * weights).sum().backward()
    assert found is not None
    assert torch.equal(found, rows.grad)


@pytest.mark.parametrize("lay_out", [pack, pad])
def test_gradient_checkpointing_changes_no_bit(
    lay_out: Callable[[list[Row], int, torch.device], MicroBatch],
) -> None:
    batch = lay_out([row(9), row(30)], 0, CPU)
    loss, expected = gradients(toy(), batch)
    model = toy(checkpointing=True)
    runs: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda *arguments: runs.append(1))
    other_loss, found = gradients(model, batch)
    assert len(runs) == 2
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_gradient_checkpointing_changes_no_outcome(gpt_sweep: MakeSweep) -> None:
    sweeps = [gpt_sweep(f"training.gradient_checkpointing={flag}") for flag in ("false", "true")]
    trainers = [GPTTrainer(sweep) for sweep in sweeps]
    assert [trainer.model.gradient_checkpointing for trainer in trainers] == [False, True]
    plain, recomputed = (
        next(trainer.train([sweep.point(0)])).losses
        for trainer, sweep in zip(trainers, sweeps, strict=True)
    )
    assert plain.tobytes() == recomputed.tobytes()


def test_the_flash_operator_takes_the_call_and_has_a_gradient() -> None:
    """Its shapes are computed without a GPU; its numbers need one."""
    sizes = {"q": 4, "k": 2, "v": 2}
    q, k, v = (
        torch.empty(1, 128, heads, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
        for heads in sizes.values()
    )
    layout = pack([row(60), row(50)], 0, torch.device("meta"))
    assert isinstance(layout.layout, Packed)
    out = attention._attend_flash(q, k, v, layout.layout)
    assert out.shape == q.shape
    out.sum().backward()
    assert k.grad is not None
    assert k.grad.shape == k.shape


# --- what a sweep is ---


def test_packing_is_no_part_of_what_a_sweep_is(gpt_sweep: MakeSweep) -> None:
    packed, padded = gpt_sweep(), gpt_sweep("training.packing=padded")
    assert packed.id == padded.id
    assert packed.canonical_json() == padded.canonical_json()
    assert packed != padded
    assert padded.to_dict()["training"]["packing"] == "padded"
    assert Sweep.parse(padded.to_dict()) == padded
    only = Sweep.parse({**padded.to_dict(), "training": {"packing": "padded"}})
    assert "training" not in only.canonical_json()


def test_a_sweep_begun_before_rows_were_packed_goes_on_padded(gpt_sweep: MakeSweep) -> None:
    plan = Plan(gpt_sweep(), Deal())
    stored = json.loads(plan.to_json())
    assert stored["sweep"]["training"].pop("packing") == "packed"
    older = Plan.from_json(json.dumps(stored), source="sweep.json").sweep
    assert isinstance(older.training, GPTTraining)
    assert older.training.packing == "padded"
    assert older.id == plan.sweep.id
    assert Plan.from_json(plan.to_json(), source="sweep.json") == plan
