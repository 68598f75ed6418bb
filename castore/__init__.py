"""castore: a content-addressed object store.

Names map to objects whose bytes are cut into content-defined chunks, each stored once, compressed,
and checked whenever it is read. See `castore.open` and `castore.Store`.

>>> import castore
>>> with castore.open("a/store") as store:
...     info = store.put("dumps/monday.sql", "monday.sql")
...     head = store.gets("dumps/monday.sql", (0, 12))
>>> head
b'create table'

What is listed in `__all__` here and in `castore.errors` is all that a layer above needs, and may
use. For one that names things its own way there are `NAME_BYTES_MAX`, `caller_identity`,
`expand_home`, `refuse_open_store_paths` and `Store.remove_old_versions`, beside the verbs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from castore import errors
    from castore.errors import CastoreError
    from castore.maintenance import check_store, compact_index, rebuild_index, restore
    from castore.model import NAME_BYTES_MAX, ObjectInfo, RangePlan, StoreStats
    from castore.objectfile import ObjectReader, ObjectWriterFile
    from castore.s3.client.identity import caller_identity
    from castore.store import Store, Transaction
    from castore.store import open_store as open
    from castore.stream.prices import Prices
    from castore.stream.reports import GcReport
    from castore.system.open_folders import refuse_open_store_paths
    from castore.urls import expand_home

__all__ = [
    "NAME_BYTES_MAX",
    "CastoreError",
    "GcReport",
    "ObjectInfo",
    "ObjectReader",
    "ObjectWriterFile",
    "Prices",
    "RangePlan",
    "Store",
    "StoreStats",
    "Transaction",
    "__version__",
    "caller_identity",
    "check_store",
    "compact_index",
    "errors",
    "expand_home",
    "open",
    "rebuild_index",
    "refuse_open_store_paths",
    "restore",
]

__version__ = "0.1.0"

_HOMES = {
    "NAME_BYTES_MAX": "model",
    "CastoreError": "errors",
    "GcReport": "stream.reports",
    "ObjectInfo": "model",
    "ObjectReader": "objectfile",
    "ObjectWriterFile": "objectfile",
    "Prices": "stream.prices",
    "RangePlan": "model",
    "Store": "store",
    "StoreStats": "model",
    "Transaction": "store",
    "caller_identity": "s3.client.identity",
    "check_store": "maintenance",
    "compact_index": "maintenance",
    "expand_home": "urls",
    "open": "store",
    "rebuild_index": "maintenance",
    "refuse_open_store_paths": "system.open_folders",
    "restore": "maintenance",
}


def __getattr__(name: str) -> Any:
    # The command's --help must not wait for lmdb and zstandard to load.
    from importlib import import_module

    if name == "errors":
        return import_module("castore.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'castore' has no attribute {name!r}")
    found = getattr(
        import_module(f"castore.{_HOMES[name]}"), "open_store" if name == "open" else name
    )
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    # What `help` and completion ask; else what was not yet used would be missing there.
    return sorted({*globals(), *__all__})
