"""The learning rate over a run: one multiplier for all groups."""

from __future__ import annotations

import math

from fractal_k8s.sweep.training import GPTTraining


def multiplier(training: GPTTraining, step: int, steps: int) -> float:
    """What the rates are multiplied with for update `step` of 0..steps-1.

    Rises linearly to 1 over `warmup_steps`, so that the last warmup step already has 1; then falls
    from 1 towards `final_lr_frac`, which it would reach at step = steps. After fractal-llm's
    src/finetune.py (see reference: cosine, warmup of at least one step).
    """
    warmup = training.warmup_steps(steps)
    if step < warmup:
        return (step + 1) / warmup
    if training.schedule == "constant":
        return 1.0
    share = (step - warmup) / max(1, steps - warmup)
    remaining = (
        0.5 * (1 + math.cos(math.pi * share)) if training.schedule == "cosine" else 1 - share
    )
    return training.final_lr_frac + (1 - training.final_lr_frac) * remaining
