"""ETags of manifests: that of a single which always counts is the server's; that of one which was
decided by the root of batches, and that of a manifest in a batch, are marked."""

from __future__ import annotations

from typing import Final

WEAK: Final = "weak "
BATCHED: Final = "batch "


def is_marked(etag: str) -> bool:
    """Whether it takes the root of batches to tell if it still counts."""
    return etag.startswith((WEAK, BATCHED))


def is_batched(etag: str) -> bool:
    """Whether it is that of a manifest in a batch."""
    return etag.startswith(BATCHED)


def batched_etag(digest: bytes) -> str:
    """Of the manifest in a batch that has this digest: the same wherever it is moved to, and no
    other's, as each has a nonce."""
    return f'{BATCHED}"{digest.hex()}"'


def real(etag: str) -> str:
    """That of the single itself, for the server."""
    return etag.removeprefix(WEAK)
