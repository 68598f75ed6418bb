"""`conducto://` for universal_pathlib, which finds this by its entry point."""

from __future__ import annotations

from castore.errors import needs_installed
from castore.fs.upath import CastorePath

with needs_installed("fsspec", "castore[fsspec]"):
    from fsspec import get_filesystem_class

get_filesystem_class("conducto")  # see castore.fs.upath


class ConductoPath(CastorePath):
    """A path in a scope: `UPath("conducto://pipeline/tables")`."""

    __slots__ = ()
