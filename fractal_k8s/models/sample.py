"""Text that a model goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fractal_k8s.models.gpt import GPT


@dataclass(frozen=True)
class Choice:
    """How the next id is chosen: the likeliest, or drawn.

    A temperature of 0 takes the likeliest; above 0 the logits are divided by it, and the id is
    drawn from the `top_k` likeliest (None = from all) with the seed.
    """

    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 42


GREEDY: Final = Choice()


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    limits: Sequence[int],
    stop_ids: Sequence[int],
    choice: Choice = GREEDY,
) -> list[list[int]]:
    """What the model appends to each prompt, without what ended it.

    All prompts go through the model together, padded on the right, once for every new id: answers
    are short, and nothing of the model is written twice for it.

    Args:
        prompts: ids, at least one each.
        limits: the most ids to append to each.
        stop_ids: each ends an answer; the first also pads, which changes nothing of what comes
            before.
    """
    device = model.cos.device
    rows = [list(prompt) for prompt in prompts]
    ends = [len(row) + limit for row, limit in zip(rows, limits, strict=True)]
    generator = torch.Generator(device).manual_seed(choice.seed)
    longest = model.config.max_positions
    while active := [
        number
        for number, row in enumerate(rows)
        if len(row) < min(ends[number], longest)
        and (len(row) == len(prompts[number]) or row[-1] not in stop_ids)
    ]:
        lengths = torch.tensor([len(rows[number]) for number in active], device=device)
        ids = torch.full((len(active), int(lengths.max())), stop_ids[0], dtype=torch.int64)
        for place, number in enumerate(active):
            ids[place, : len(rows[number])] = torch.tensor(rows[number])
        hidden = model.hidden(ids.to(device))
        last = hidden[torch.arange(len(active), device=device), lengths - 1]
        chosen = _choose(model.logits(last), choice, generator).tolist()
        for number, new in zip(active, chosen, strict=True):
            rows[number].append(new)
    answers = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    return [answer[:-1] if answer and answer[-1] in stop_ids else answer for answer in answers]


def _choose(logits: Tensor, choice: Choice, generator: torch.Generator) -> Tensor:
    """(rows, vocab_size) -> ids (rows,)."""
    if choice.temperature == 0:
        return logits.argmax(dim=-1)
    if choice.top_k is not None and choice.top_k < logits.size(-1):
        least = logits.topk(choice.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    shares = torch.softmax(logits / choice.temperature, dim=-1)
    return torch.multinomial(shares, 1, generator=generator).squeeze(1)
