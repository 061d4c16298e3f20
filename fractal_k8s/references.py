"""References to weights and data that lie elsewhere, as people write them. Text only.

    wandb:ENTITY/PROJECT/NAME:VERSION          an artifact; VERSION is v7 or an alias such as latest
    hf:REPO@REVISION[:SUBFOLDER]               a repository; REVISION is a commit, a tag or a branch
    s3://BUCKET/PREFIX[@CONTENT][?endpoint=..] objects; CONTENT is 12 hex digits of what they hold

A reference is exact if it names the same content for ever: a numbered version, a whole commit, or
objects with their CONTENT.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import parse_qs

from fractal_k8s.buckets import check_options
from fractal_k8s.errors import UsageError

Kind = Literal["wandb", "hf", "s3"]

_FORMS: Final[dict[Kind, str]] = {
    "wandb": "wandb:ENTITY/PROJECT/NAME:VERSION, such as wandb:my-team/llm/sft:v7",
    "hf": "hf:REPO@REVISION or hf:REPO@REVISION:SUBFOLDER, such as hf:karpathy/nanochat-d32@main",
    "s3": "s3://BUCKET/PREFIX, such as s3://models/d20",
}
_PATTERNS: Final[dict[Kind, re.Pattern[str]]] = {
    "wandb": re.compile(r"wandb:(?P<place>[^/:\s]+/[^/:\s]+/[^/:\s]+):(?P<version>[^/:\s]+)"),
    "hf": re.compile(
        r"hf:(?P<place>[^/:@\s]+(/[^/:@\s]+)?)@(?P<version>[^:@\s]+)(:(?P<folder>[^:\s]+))?"
    ),
    "s3": re.compile(
        r"s3://(?P<place>[^/@?\s]+(/[^?\s]*?)?)(@(?P<version>[0-9a-f]{12}))?(\?(?P<query>\S+))?"
    ),
}
_EXACT: Final[dict[Kind, re.Pattern[str]]] = {
    "wandb": re.compile(r"v\d+"),
    "hf": re.compile(r"[0-9a-f]{40}"),
    "s3": re.compile(r"[0-9a-f]{12}"),
}


@dataclass(frozen=True)
class Reference:
    """Where something lies, in parts."""

    kind: Kind
    # ENTITY/PROJECT/NAME, REPO, or BUCKET/PREFIX
    place: str
    # version or alias, revision, CONTENT; None where it may be missing and is
    version: str | None
    # below the repository
    folder: str = ""
    # options of the bucket: endpoint, region, addressing
    query: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether it names the same content for ever."""
        return self.version is not None and _EXACT[self.kind].fullmatch(self.version) is not None

    @property
    def options(self) -> dict[str, str]:
        """The options of the bucket by name."""
        return {key: values[-1] for key, values in parse_qs(self.query).items()}

    @property
    def uri(self) -> str:
        """Of objects: without their CONTENT, as others write it."""
        return replace(self, version=None).text

    @property
    def text(self) -> str:
        """As it is written."""
        if self.kind == "wandb":
            return f"wandb:{self.place}:{self.version}"
        if self.kind == "hf":
            return f"hf:{self.place}@{self.version}" + (f":{self.folder}" if self.folder else "")
        content = f"@{self.version}" if self.version else ""
        return f"s3://{self.place}{content}" + (f"?{self.query}" if self.query else "")

    def at(self, version: str) -> Reference:
        """The same place at another version."""
        return replace(self, version=version)


def parse_reference(text: str) -> Reference | None:
    """The reference that a text is; None if it is none, such as a path.

    Raises:
        UsageError: it begins as one and goes on as something else, or there is a key in it.
    """
    kind: Kind
    for kind, pattern in _PATTERNS.items():
        if not text.startswith("s3://" if kind == "s3" else f"{kind}:"):
            continue
        match = pattern.fullmatch(text)
        if match is None:
            if kind == "s3":
                check_options(text, ())  # a text with a key in it must not be shown
            raise UsageError(f"{text!r} is not {_FORMS[kind]}")
        parts = match.groupdict()
        found = Reference(
            kind,
            parts["place"].rstrip("/"),
            parts["version"],
            (parts.get("folder") or "").strip("/"),
            parts.get("query") or "",
        )
        if kind == "s3":
            check_options(found.uri, found.options)
        return found
    return None


def is_moving(text: str) -> bool:
    """Whether a text is a reference that may mean something else tomorrow."""
    reference = parse_reference(text)
    return reference is not None and not reference.is_exact
