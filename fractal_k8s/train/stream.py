"""Documents as one endless stream of tokens, cut into batches (nanochat's dataloader)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch

from fractal_k8s.checkpoints.tokenizer import Tokenizer
from fractal_k8s.models.attention import Padded
from fractal_k8s.train.batches import MicroBatch


class TextBatches:
    """Batches of full rows with a label at every position; at its end the text begins again.

    A document begins with `<|bos|>` and may go on in the next row. One document is in memory at a
    time, and the tokens of one batch.

    Args:
        texts: begins to read the documents.
        shape: rows and positions of a batch.
    """

    def __init__(
        self,
        texts: Callable[[], Iterator[str]],
        tokenizer: Tokenizer,
        shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self._shape = shape
        self._device = device
        self._waiting: deque[int] = deque()
        self._source: Iterator[str] = iter(())
        # how often the text was begun
        self.readings = 0

    def __iter__(self) -> TextBatches:
        return self

    def __next__(self) -> MicroBatch:
        rows, length = self._shape
        needed = rows * length + 1
        while len(self._waiting) < needed:
            self._read_document()
        tokens = torch.tensor([self._waiting.popleft() for _ in range(needed)])
        ids = tokens[:-1].view(rows, length).to(self._device)
        return MicroBatch(ids, tokens[1:].to(self._device), None, Padded(), needed - 1)

    def _read_document(self) -> None:
        document = next(self._source, None)
        if document is None:
            self._source = self._texts()
            self.readings += 1
            document = next(self._source)  # a text without any document was refused before
        self._waiting.append(self._tokenizer.special["<|bos|>"])
        self._waiting.extend(self._tokenizer.encode(document))
