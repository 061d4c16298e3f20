"""nanochat's tokenizer: a pickled tiktoken Encoding, opened without running what is in the file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, Final

import tiktoken

from fractal_k8s.errors import CorruptError, unreadable

SPECIAL_TOKENS: Final = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
FILE_NAME: Final = "tokenizer.pkl"
# nanochat's table of bytes per token, which may lie beside it
BYTES_FILE_NAME: Final = "token_bytes.pt"


class Tokenizer:
    """Text to ids. Special tokens are found by name: their ids differ between vocabularies."""

    def __init__(self, encoding: tiktoken.Encoding, sha256: str = "") -> None:
        self._encoding = encoding
        # of the file that it was read from, hex; empty if it was read from none
        self.sha256 = sha256
        self.special = {name: encoding.encode_single_token(name) for name in SPECIAL_TOKENS}

    @property
    def vocab_size(self) -> int:
        return self._encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: the spelling of a special token in it is just text."""
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        return self._encoding.decode(ids)

    def has_sizes(self, sizes: list[int]) -> bool:
        """Whether a table of bytes per token may be this tokenizer's: 0 for special tokens.

        Tokens that are parts of characters do not count: there is more than one way to count them.
        """
        if len(sizes) != self.vocab_size:
            return False
        special = {*self.special.values()}
        for token, size in enumerate(sizes):
            text = self._encoding.decode_single_token_bytes(token)
            with contextlib.suppress(UnicodeDecodeError):
                text.decode()
                if size != (0 if token in special else len(text)):
                    return False
        return True


def load_tokenizer(folder: Path) -> Tokenizer:
    """Reads `tokenizer.pkl` of a folder.

    Raises:
        UsageError: there is no such file.
        RetryError: it cannot be read now.
        CorruptError: it is damaged, or holds anything but a tiktoken Encoding.
    """
    path = folder / FILE_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    return tokenizer_from_bytes(data, source=str(path))


def tokenizer_from_bytes(data: bytes, *, source: str) -> Tokenizer:
    try:
        pickled = _EncodingUnpickler(io.BytesIO(data)).load()
    except _RefusedError as error:
        raise CorruptError(
            f"{source}: refers to {error}, a tokenizer may hold a tiktoken Encoding only; "
            "do not open this file with anything else"
        ) from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise CorruptError(f"{source}: damaged or not a pickled tokenizer ({error})") from None
    if not isinstance(pickled, _PickledEncoding):
        raise CorruptError(f"{source}: holds a {type(pickled).__name__}, not a tokenizer")
    return Tokenizer(_build(pickled.state, source), hashlib.sha256(data).hexdigest())


def _build(state: Any, source: str) -> tiktoken.Encoding:
    kinds = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}
    if not isinstance(state, dict) or any(
        not isinstance(state.get(key), kind) for key, kind in kinds.items()
    ):
        raise CorruptError(f"{source}: not a tokenizer: lacks one of {', '.join(kinds)}")
    if missing := [name for name in SPECIAL_TOKENS if name not in state["special_tokens"]]:
        raise CorruptError(f"{source}: not nanochat's tokenizer: lacks {', '.join(missing)}")
    # tiktoken's core aborts on ids that repeat or leave gaps, so they are checked before it
    ids = [*state["mergeable_ranks"].values(), *state["special_tokens"].values()]
    whole = all(type(number) is int for number in ids) and sorted(ids) == list(range(len(ids)))
    if not whole or not all(isinstance(token, bytes) for token in state["mergeable_ranks"]):
        raise CorruptError(f"{source}: its token ids are not the numbers 0 to {len(ids) - 1}")
    try:
        return tiktoken.Encoding(**{key: state[key] for key in kinds})
    except Exception as error:  # tiktoken raises whatever its Rust core does
        raise CorruptError(f"{source}: tiktoken does not accept it ({error})") from None


class _RefusedError(Exception):
    """The pickle asked for a class that is not on the list."""


class _PickledEncoding:
    """Stands in for tiktoken.core.Encoding while unpickling: keeps the state, builds nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _EncodingUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _PickledEncoding
        raise _RefusedError(f"{module}.{name}")
