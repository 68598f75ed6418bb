"""libfuse 3 by mfusepy. Importing this raises ImportError where either is not installed."""

from __future__ import annotations

import ctypes.util
import os

from castore.errors import needs_installed

if "FUSE_LIBRARY_PATH" not in os.environ:  # mfusepy would take libfuse 2 if that is there, too
    _found = ctypes.util.find_library("fuse3")
    if _found is None:
        raise ImportError(
            "libfuse 3 is not installed (on Debian and Ubuntu: apt-get install fuse3)"
        )
    os.environ["FUSE_LIBRARY_PATH"] = _found

with needs_installed("mfusepy", "castore[mount]"):
    import mfusepy

__all__ = ["mfusepy"]
