"""File systems of buckets, as URIs and the environment describe them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from fractal_k8s.errors import UsageError

if TYPE_CHECKING:
    from pyarrow import fs as pafs

# NAME:KEY@ or KEY@ before a host, also in an option; or a ":" in a bucket's name, which has none
_KEYS: Final = re.compile(r"(://|%3A%2F%2F)[^/?]*(@|%40)|^\w+://[^/?]*:", re.IGNORECASE)
# scheme -> what a URI may say behind its "?"
OPTIONS: Final = {
    "s3": frozenset({"endpoint", "region", "addressing"}),
    "gs": frozenset({"endpoint"}),
}


def place_in_bucket(uri: str) -> str | None:
    """BUCKET/PREFIX of a URI, whoever serves it and without options or keys; None = no bucket."""
    parts = urlsplit(uri)
    if parts.scheme not in OPTIONS:
        return None
    folders = [parts.netloc.rpartition("@")[2], *filter(None, parts.path.split("/"))]
    return "/".join(folders)


def below(uri: str, *folders: str) -> str:
    """URI of a folder of a store: a bucket's options stay behind it, a path has none."""
    place, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return "/".join((place.rstrip("/"), *folders)) + mark + options


def open_s3(uri: str, options: dict[str, str]) -> pafs.FileSystem:
    """S3 as a URI's query options and the environment describe it.

    pyarrow's `from_uri` can set neither virtual addressing nor single-request writes, so the file
    system is built from its parts: query options of the URI (endpoint, region, addressing), then
    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION.

    Args:
        uri: what to name in a message.

    Raises:
        UsageError: an option is unknown or wrong.
    """
    from pyarrow import fs as pafs

    check_options(uri, options)
    environment = os.environ
    endpoint = (
        options.get("endpoint")
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
    )
    address = urlsplit(endpoint or "")
    if endpoint and not address.netloc:
        address = urlsplit(f"https://{endpoint}")
    addressing = options.get("addressing") or ("path" if _is_local(address.hostname) else "virtual")
    if addressing not in ("path", "virtual"):
        raise UsageError(f"{uri}: addressing must be path or virtual, got {addressing!r}")
    return pafs.S3FileSystem(
        # without one pyarrow asks the AWS configuration, as every other client does
        region=options.get("region") or environment.get("AWS_REGION"),
        endpoint_override=address.netloc or None,
        scheme=address.scheme or "https",
        force_virtual_addressing=bool(endpoint) and addressing == "virtual",
        allow_delayed_open=True,  # a small write is one PUT instead of a multipart upload
        background_writes=False,
    )


def open_gcs(uri: str, options: dict[str, str]) -> pafs.FileSystem:
    """Google's storage; its one option is `endpoint`."""
    from pyarrow import fs as pafs

    check_options(uri, options)
    address = urlsplit(options.get("endpoint", ""))
    return pafs.GcsFileSystem(
        endpoint_override=address.netloc or None, scheme=address.scheme or "https"
    )


def check_options(uri: str, options: Iterable[str]) -> None:
    """Refuses what a bucket's URI may not say. No value is shown: it may be a key.

    Raises:
        UsageError: an option is unknown, or there are keys in the URI.
    """
    scheme = uri.partition("://")[0]
    if _KEYS.search(uri):
        raise UsageError(
            f"a URI {scheme}://... holds what looks like a key; leave it out, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    known, place = OPTIONS[scheme], uri.partition("?")[0]
    if unknown := sorted(set(options) - known):
        raise UsageError(
            f"{place}: unknown option {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )


def _is_local(host: str | None) -> bool:
    """A host without per-bucket names: an address, or this machine."""
    return host is not None and (
        host == "localhost" or host.replace(".", "").isdigit() or ":" in host
    )
