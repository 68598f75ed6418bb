"""`conducto://` for universal_pathlib, which finds this by its entry point."""

from __future__ import annotations

from fsspec import get_filesystem_class

from castore.fs.upath import CastorePath

get_filesystem_class("conducto")  # see castore.fs.upath


class ConductoPath(CastorePath):
    """A path in a scope: `UPath("conducto://pipeline/tables")`."""

    __slots__ = ()
