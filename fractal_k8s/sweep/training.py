"""The training configs, one per model: everything about a run that is not an axis.

Defaults are part of the sweep format: a sweep's id is a hash of what differs from them, so a
default never changes within a format version (`definition.FORMAT`); new options get a default
that means "as before".
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from fractal_k8s.sweep.base import Spec

GROUPS = ("matrix", "embedding", "unembedding")

# stands for the depth in the checkpoint of a sweep over several models
DEPTH_FIELD: Final = "{depth}"

Rate = PositiveFloat

# Keys that change nothing about a run, so that they are no part of a sweep's id: how it computes,
# which is its numerics class; a permission; and what follows from the checkpoint.
OUTSIDE_ID: Final = ("packing", "execution", "allow_repeats", "flops_per_token")


class MLPTraining(Spec):
    """Gradient descent on a two-layer net, as in arXiv:2402.06184.

    One hidden layer without biases, mean-field scaling, mean squared error on Gaussian data.
    Every point of a sweep starts from the same weights and sees the same data.
    """

    # gradient steps per point
    steps: PositiveInt = 100
    # hidden units and inputs; the notebook's default is 8, the paper's figures use 16
    width: PositiveInt = 8
    # tanh(sqrt(2) z), sqrt(2) max(z, 0) or z
    nonlinearity: Literal["tanh", "relu", "identity"] = "tanh"
    # examples; None = as many as there are parameters (for identity: as many as the width)
    examples: PositiveInt | None = None
    # examples drawn with replacement for each step's gradient; None = full batch.
    # The recorded loss is the full batch's either way.
    minibatch: PositiveInt | None = None
    # learning rate of the first (input) layer and of the second (output) layer
    input_lr: Rate = 1.0
    output_lr: Rate = 1.0
    # constant added to every input-layer weight, before each step as in the original study
    init_offset: float = 0.0
    # 20 % of the edge pixels differ between float32 and float64
    dtype: Literal["float64", "float32"] = "float64"

    @property
    def num_parameters(self) -> int:
        return self.width * self.width + self.width

    @property
    def num_examples(self) -> int:
        if self.examples is not None:
            return self.examples
        return self.width if self.nonlinearity == "identity" else self.num_parameters

    @property
    def rate_dtype(self) -> str:
        """The dtype a learning rate has when it meets a weight."""
        return self.dtype

    def num_steps(self) -> int | None:
        return self.steps

    @model_validator(mode="after")
    def _minibatch_is_smaller(self) -> MLPTraining:
        if self.minibatch is not None and self.minibatch > self.num_examples:
            raise ValueError(
                f"minibatch {self.minibatch} is larger than the {self.num_examples} examples"
            )
        return self


class GPTTraining(Spec):
    """A fine-tune of a nanochat checkpoint (karpathy/nanochat at 8f979a8, scripts/chat_sft.py).

    Learning rates are nanochat's "given" rates: the two AdamW groups, embedding and unembedding,
    apply theirs times (n_embd / 768) ** -0.5, Muon's matrices apply theirs as it is.
    """

    # training tokens per point; the number of steps follows from it
    tokens: PositiveInt = 250_000
    # training FLOPs per point, which then decide the number of steps; None = the tokens do
    flops: PositiveFloat | None = None
    # FLOPs of one position, forward and backward (`sweep.flops`): what a launch
    # finds in the checkpoint, for `flops`. None = not known yet
    flops_per_token: PositiveInt | None = None
    # rows per step, and ids per row (a row is cut to this length)
    batch_size: PositiveInt = 48
    # rows that go through the model together; the gradients of a step's parts are added up, so that
    # the step is that of the whole batch. None = the whole batch at once
    device_batch_size: PositiveInt | None = None
    max_seq_len: PositiveInt = Field(default=1024, ge=2)
    # what `tokens` counts: every position of the batch, or the labels of the first batch only
    # (as the public fractal-llm code does)
    token_accounting: Literal["all", "supervised"] = "all"
    # Muon for the matrices and AdamW for the rest, or AdamW for everything
    optimizer: Literal["muon+adamw", "adamw"] = "muon+adamw"
    matrix_lr: Rate = 0.02
    embedding_lr: Rate = 0.2
    unembedding_lr: Rate = 0.004
    # rates of the attention and of the MLP matrices; None = matrix_lr
    attention_lr: Rate | None = None
    mlp_lr: Rate | None = None
    # groups that are trained; the others are frozen
    trainable_param_groups: tuple[Literal["matrix", "embedding", "unembedding"], ...] = (
        "matrix",
        "unembedding",
    )
    # decoupled weight decay of the AdamW groups
    weight_decay: float = Field(default=0.1, ge=0)
    # shape of the learning rate over the run, after the warmup
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    # linear warmup over max(1, int(warmup_frac * steps)) steps; one step of it is none, because the
    # last warmup step has the full rate already
    warmup_frac: float = Field(default=0.06, ge=0, le=1)
    # the multiplier that the schedule falls to
    final_lr_frac: float = Field(default=0.0, ge=0, le=1)
    # largest global gradient norm; None = no clipping
    clip_norm: PositiveFloat | None = None
    # rows in the order of the file, or shuffled by the run's seed
    data_order: Literal["file", "shuffled"] = "file"
    # share of a label's probability that is spread over the vocabulary in the loss
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    # the last rows of the data are not trained on: their loss is measured before and after each run
    probe_rows: NonNegativeInt = 0
    # accept runs that see rows again because they ask for more than the data hold
    allow_repeats: bool = False
    # layers of the model: fills in the {depth} of the sweep's checkpoint. None = it has none
    depth: PositiveInt | None = None
    # dtype of activations and matrix products; weights and optimizer state are float32
    dtype: Literal["float32", "bfloat16"] = "float32"
    # the rows of a step end to end, without padding and with logits where a label is; or side by
    # side, padded to the longest, with logits everywhere, as nanochat does
    packing: Literal["packed", "padded"] = "packed"
    # compute a layer's activations again in the backward pass instead of keeping them
    gradient_checkpointing: bool = False
    # how a step is run: torch's operations one by one, the blocks compiled around the attention, or
    # everything recorded as CUDA graphs (GPUs only, and not over an axis of weight_decay)
    execution: Literal["eager", "compiled", "graphs"] = "eager"

    @property
    def rate_dtype(self) -> str:
        """Weights are float32, so that is what a rate is rounded to when it meets them."""
        return "float32"

    @property
    def tokens_per_step(self) -> int:
        """Positions of a step when every row is as long as it may be: what `tokens` counts in."""
        return self.batch_size * self.max_seq_len

    def num_steps(self, first_labels: int | None = None) -> int | None:
        """Steps per point; None while what decides them is not known.

        Args:
            first_labels: labels of the run's first batch, in which supervised accounting counts.
        """
        if self.flops is not None:
            if self.flops_per_token is None:
                return None
            return math.ceil(self.flops / (self.flops_per_token * self.tokens_per_step))
        if self.token_accounting == "supervised":
            return None if first_labels is None else math.ceil(self.tokens / max(1, first_labels))
        return math.ceil(self.tokens / self.tokens_per_step)

    def warmup_steps(self, steps: int) -> int:
        return max(1, int(self.warmup_frac * steps))

    @field_validator("trainable_param_groups", mode="before")
    @classmethod
    def _one_text_is_a_list(cls, groups: Any) -> Any:
        """`"matrix,unembedding"` as the two groups, as fractal-llm writes them."""
        if isinstance(groups, str):
            return tuple(part.strip() for part in groups.split(",") if part.strip())
        return groups

    @field_validator("trainable_param_groups")
    @classmethod
    def _groups_once_in_order(cls, groups: tuple[str, ...]) -> tuple[str, ...]:
        if not groups:
            raise ValueError("at least one group must be trained")
        return tuple(group for group in GROUPS if group in groups)

    @model_validator(mode="after")
    def _one_budget(self) -> GPTTraining:
        if self.flops is not None and self.token_accounting == "supervised":
            raise ValueError(
                'flops are spent on every position; token_accounting = "supervised" needs tokens'
            )
        return self


class QuadraticTraining(Spec):
    """Gradient descent on a quadratic of two coordinates: the null model of every map.

    With a coupling c the loss is w1^2 + w2^2 + c w1 w2. A ripple of amplitude e and wavelength l
    adds e (1 + cos(2 pi w / l)) for each coordinate w, or multiplies each w^2 by
    1 + e cos(2 pi w / l) (arXiv:2406.13971). Without a ripple the edge is a smooth curve; with an
    additive one the loss is no longer convex from e / l^2 = (2 - |c|) / (2 pi)^2 on.
    """

    # gradient steps per point
    steps: PositiveInt = 100
    # how strongly one coordinate pulls on the other; 0 makes the edge two straight lines
    coupling: float = Field(default=1.0, gt=-2, lt=2)
    ripple: Literal["additive", "multiplicative"] | None = None
    amplitude: PositiveFloat = 0.05
    wavelength: PositiveFloat = 0.2
    # learning rates of the two coordinates
    first_lr: Rate = 0.1
    second_lr: Rate = 0.1
    dtype: Literal["float64", "float32"] = "float64"

    @property
    def rate_dtype(self) -> str:
        return self.dtype

    def num_steps(self) -> int | None:
        return self.steps


Training = MLPTraining | GPTTraining | QuadraticTraining
