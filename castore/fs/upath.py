"""`castore://` for universal_pathlib, which finds this by its entry point."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fsspec import get_filesystem_class

from castore.errors import needs_installed

# Loaded for UPath, which asks the class of the file system how a URL is taken apart, if it is
# loaded, and guesses otherwise.
get_filesystem_class("castore")
with needs_installed("upath", "universal_pathlib"):
    UPath: Any = import_module("upath").UPath


class CastorePath(UPath):  # type: ignore[misc]  # need not be installed
    """A path in a store: `UPath("castore://tables", store="/data/store")`, or by a plain URL.

    `as_uri` gives the plain URL, which says which store it is.
    """

    __slots__ = ()

    def replace(self, target: Any) -> Any:
        """As `rename`, which replaces what was there."""
        return self.rename(target)

    def as_uri(self) -> str:
        url: str = self.fs.unstrip_protocol(self.path)
        return url
