"""Whether this machine can mount, for tests that do."""

from __future__ import annotations

import functools
import tempfile

import castore
from castore.mount import MountUnavailable, mounted, unavailable


@functools.cache
def why_not() -> str | None:
    """The reason, found by trying: a container may have /dev/fuse and not be allowed to mount."""
    reason = unavailable()
    if reason is not None:
        return reason
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as at:
        castore.open(f"{folder}/store").close()
        try:
            with mounted(f"{folder}/store", at):
                return None
        except MountUnavailable as error:
            return error.reason
