"""Small models from scratch: text -> tokenizer -> base model -> chat model.

The stages, rates and schedules are those of karpathy/nanochat at 8f979a8 (tok_train, base_train,
chat_sft), on one device and without resuming. Pretraining at scale (several GPUs, mixtures of data,
checkpoints on the way) will live beside this file and use the same stages.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from fractal_k8s.checkpoints.bpe import MIN_VOCAB_SIZE
from fractal_k8s.checkpoints.files import CheckpointFiles
from fractal_k8s.checkpoints.save import save_checkpoint
from fractal_k8s.data.conversations import Row
from fractal_k8s.errors import UsageError
from fractal_k8s.models.gpt import GPT
from fractal_k8s.models.init import config_of_depth, random_weights
from fractal_k8s.stopping import StopSignals
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.batches import MicroBatch, pad
from fractal_k8s.train.corpus import Material, Tell, read_material
from fractal_k8s.train.determinism import make_deterministic
from fractal_k8s.train.environment import training_device
from fractal_k8s.train.optimizers import Optimizers, build_optimizers
from fractal_k8s.train.recipe import Recipe
from fractal_k8s.train.stream import TextBatches

# nanochat's rates, at multiplier 1; all groups are trained
_RATES: Final = {"matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004}
_BASE_CLIP_NORM: Final = 1.0
_WARMDOWN: Final = 0.2
_MOMENTUM: Final = (0.85, 0.95)
_MOMENTUM_STEPS: Final = 300
_SFT_RATE_SHARE: Final = 0.02
_EVALUATION_ROWS: Final = 25
_SECONDS_BETWEEN_LINES: Final = 5.0
_SAMPLE_TOKENS: Final = 24


@dataclass(frozen=True)
class Pretrained:
    """A finished model and how good it is."""

    files: CheckpointFiles
    parameters: int
    # on held-out text, after the base stage
    bits_per_byte: float
    # mean nats per label on held-out conversations before and after the second stage
    sft_loss: tuple[float, float] | None
    # what was asked, what the model said, and what the data have
    sample: dict[str, str]
    # how often the text was begun for the base stage
    readings: int
    seconds: float


def pretrain(recipe: Recipe, depths: Sequence[int], out: Path, tell: Tell) -> list[Pretrained]:
    """Trains a model of each depth on the same data and saves each as nanochat would.

    Everything that can be wrong with the input is found before the first training step, and nothing
    is written until then.

    Args:
        depths: one depth is saved in `out`, several in `out`/d<depth> each.
        tell: gets a line of progress every few seconds.

    Raises:
        UsageError: the input cannot be used; CorruptError: it is damaged.
        Stopped: by a signal, which leaves no half of a file.
    """
    with StopSignals():
        return _pretrain(recipe, depths, out, tell)


def _pretrain(recipe: Recipe, depths: Sequence[int], out: Path, tell: Tell) -> list[Pretrained]:
    make_deterministic()
    homes = [out if len(depths) == 1 else out / f"d{depth}" for depth in depths]
    for home in homes:
        if any((home / "checkpoints").glob("model_*.pt")):
            raise UsageError(f"{home} already holds a checkpoint; choose another --out")
    _check_sizes(recipe)
    with tempfile.TemporaryDirectory(prefix="fractal-k8s-tokenizer-") as scratch:
        material = read_material(recipe, Path(scratch) / "tokenizer", tell)
        return [
            _Run(replace(recipe, depth=depth), material, tell).save(home)
            for depth, home in zip(depths, homes, strict=True)
        ]


def _check_sizes(recipe: Recipe) -> None:
    if recipe.vocab_size < MIN_VOCAB_SIZE:
        raise UsageError(
            f"a vocabulary has at least {MIN_VOCAB_SIZE} tokens: 256 bytes and the special ones; "
            f"{recipe.vocab_size} were asked for"
        )
    step = recipe.batch_size * recipe.sequence_len
    if recipe.tokens < step:
        raise UsageError(
            f"{recipe.tokens:,} tokens are less than one step of {recipe.batch_size} rows of "
            f"{recipe.sequence_len}; give at least {step:,}"
        )


class _Run:
    """One depth's base stage and second stage."""

    def __init__(self, recipe: Recipe, material: Material, tell: Tell) -> None:
        self.recipe = recipe
        self.material = material
        self.tell = tell
        self.device = training_device()
        config = config_of_depth(
            recipe.depth,
            vocab_size=material.tokenizer.vocab_size,
            sequence_len=recipe.sequence_len,
        )
        self.config = config
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        weights = random_weights(config, recipe.seed)
        self.model = GPT.from_weights(config, weights, compute_dtype=dtype).to(self.device)
        self.pad_id = material.tokenizer.special["<|assistant_end|>"]

    def save(self, home: Path) -> Pretrained:
        """Trains and saves the model."""
        began = time.perf_counter()
        parameters = sum(part.numel() for part in self.model.parameters())
        self.tell(
            f"model      depth {self.config.n_layer}, {self.config.n_embd} channels, "
            f"{parameters:,} parameters; {self.recipe.tokens / parameters:.2g} tokens for each"
        )
        readings = self._base()
        bits = self._bits_per_byte()
        self.tell(f"base       {bits:.4f} bits per byte of held-out text")
        losses = None
        step = self.recipe.base_steps
        if self.material.conversations:
            before = self._mean_loss(self.material.held_out_conversations)
            step = self._sft() - 1
            losses = (before, self._mean_loss(self.material.held_out_conversations))
            self.tell(f"sft        loss of held-out conversations {before:.4f} -> {losses[1]:.4f}")
        meta: dict[str, Any] = {
            "val_bpb": bits,
            "model_config": asdict(self.config),
            "user_config": _noted(self.recipe),
        }
        if losses is not None:
            meta["val_loss"] = losses[1]
        weights = self.model.state_dict()
        files = save_checkpoint(home, step, weights, meta, self.material.tokenizer_folder)
        seconds = time.perf_counter() - began
        return Pretrained(files, parameters, bits, losses, self._sample(), readings, seconds)

    # --- stages ---

    def _base(self) -> int:
        """nanochat's base_train; returns how often the text was begun."""
        recipe = self.recipe
        stream = TextBatches(
            self.material.texts,
            self.material.tokenizer,
            (recipe.batch_size, recipe.sequence_len),
            self.device,
        )
        optimizers = self._optimizers(clip_norm=_BASE_CLIP_NORM)

        def before(step: int) -> float:
            share = min(1.0, step / _MOMENTUM_STEPS)
            optimizers.set_momentum((1 - share) * _MOMENTUM[0] + share * _MOMENTUM[1])
            return warmdown(step, recipe.base_steps)

        self._fit("base", recipe.base_steps, lambda step: next(stream), optimizers, before)
        return stream.readings

    def _sft(self) -> int:
        """nanochat's chat_sft; returns its number of steps."""
        rows, size = self.material.conversations, self.recipe.batch_size
        each = len(rows) // size
        steps = each * self.recipe.epochs
        optimizers = self._optimizers(clip_norm=None)

        def batch(step: int) -> MicroBatch:
            start = step % each * size
            return pad(rows[start : start + size], self.pad_id, self.device)

        self._fit("sft", steps, batch, optimizers, lambda k: _SFT_RATE_SHARE * (1 - k / steps))
        return steps

    def _optimizers(self, clip_norm: float | None) -> Optimizers:
        training = GPTTraining(
            **_RATES,
            trainable_param_groups=("matrix", "embedding", "unembedding"),
            weight_decay=0.0,
            clip_norm=clip_norm,
        )
        parameters: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        return build_optimizers(parameters, training, self.config.n_embd)

    def _fit(
        self,
        stage: str,
        steps: int,
        batch: Callable[[int], MicroBatch],
        optimizers: Optimizers,
        multiplier: Callable[[int], float],
    ) -> None:
        """Trains for so many steps, telling how it goes.

        Raises:
            UsageError: the loss is no number any more.
        """
        progress = _Progress(stage, steps, self.tell)
        self.model.train()
        for step in range(steps):
            part = batch(step)
            loss = self._loss_sum(part) / part.num_labels
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers.step(multiplier(step))
            progress.step(float(loss.detach()), part.ids.numel())

    # --- measuring ---

    def _loss_sum(self, part: MicroBatch) -> Tensor:
        return self.model.loss_sum(part.ids, part.labels, part.places, part.layout)

    @torch.no_grad()
    def _total(self, rows: list[Row]) -> tuple[float, int]:
        """Summed loss in nats over the labels of rows, and how many labels there are."""
        self.model.eval()
        nats, count = 0.0, 0
        for start in range(0, len(rows), _EVALUATION_ROWS):
            part = pad(rows[start : start + _EVALUATION_ROWS], self.pad_id, self.device)
            nats += float(self._loss_sum(part))
            count += part.num_labels
        return nats, count

    def _mean_loss(self, rows: list[Row]) -> float:
        nats, count = self._total(rows)
        return nats / count

    def _bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of held-out text; tokens without bytes do not count."""
        nats, _ = self._total(self.material.held_out)
        sizes = self.material.token_bytes
        size = sum(int(sizes[token]) for row in self.material.held_out for token in row.ids[1:])
        return nats / math.log(2) / size

    @torch.no_grad()
    def _sample(self) -> dict[str, str]:
        """What the model says to something held out, always the likeliest token."""
        self.model.eval()
        tokenizer = self.material.tokenizer
        if self.material.held_out_conversations:
            row = self.material.held_out_conversations[0]
            start = row.trained.index(True)
        else:
            row = self.material.held_out[0]
            start = max(1, len(row.ids) // 2)
        ids = list(row.ids[:start])
        limit = min(start + _SAMPLE_TOKENS, self.config.max_positions)
        while len(ids) < limit and ids[-1] != self.pad_id:
            logits = self.model(torch.tensor([ids], device=self.device))
            ids.append(int(logits[0, -1].argmax()))

        def plain(tokens: Sequence[int]) -> str:
            special = tokenizer.special.values()
            return tokenizer.decode([token for token in tokens if token not in special])

        return {
            "prompt": plain(row.ids[:start]),
            "answer": plain(ids[start:]),
            "expected": plain(row.ids[start : start + _SAMPLE_TOKENS]),
        }


class _Progress:
    """A line every few seconds: step, loss, speed, time left."""

    def __init__(self, stage: str, steps: int, tell: Tell) -> None:
        self.stage, self.steps, self.tell = stage, steps, tell
        self.done = self.tokens = 0
        self.loss: float | None = None
        self.began = self.told = time.perf_counter()

    def step(self, loss: float, tokens: int) -> None:
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss of the {self.stage} stage is {loss} at step {self.done + 1}; "
                "try another --seed or a larger batch"
            )
        self.done += 1
        self.tokens += tokens
        # a moving average: single batches differ
        self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        now = time.perf_counter()
        if self.done < self.steps and now - self.told < _SECONDS_BETWEEN_LINES:
            return
        self.told = now
        passed = max(now - self.began, 1e-9)
        left = passed / self.done * (self.steps - self.done)
        self.tell(
            f"{self.stage:<10} step {self.done}/{self.steps}  loss {self.loss:.4f}  "
            f"{self.tokens / passed:,.0f} tokens/s  "
            + (f"{left:.0f} s left" if self.done < self.steps else f"{passed:.0f} s")
        )


def _noted(recipe: Recipe) -> dict[str, Any]:
    """The recipe for a checkpoint's description; where files lay on this machine is left out."""
    names = {key: getattr(recipe, key) for key in ("text", "conversations")}
    short = {key: name and Path(name).name for key, name in names.items()}
    return {**asdict(recipe), **short}


def warmdown(step: int, steps: int) -> float:
    """nanochat's base schedule: full rates, then linearly to 0 over the last fifth."""
    last = round(_WARMDOWN * steps)
    return 1.0 if step <= steps - last else (steps - step) / last
