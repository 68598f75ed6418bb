"""castore: a content-addressed object store.

    import castore

    with castore.open("/data/store") as store:
        store.put("tables/2026-01-02.csv", "today.csv")
        head = store.gets("tables/2026-01-02.csv", (0, 65536))

Names map to objects whose bytes are cut into content-defined chunks, each stored once, compressed,
and checked whenever it is read. See `castore.open` and `castore.Store`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from castore import errors
    from castore.errors import CastoreError
    from castore.maintenance import check_store, compact_index, rebuild_index, restore
    from castore.model import ObjectInfo, RangePlan, StoreStats
    from castore.store import Store, Transaction
    from castore.store import open_store as open
    from castore.stream.reports import GcReport

__all__ = [
    "CastoreError",
    "GcReport",
    "ObjectInfo",
    "RangePlan",
    "Store",
    "StoreStats",
    "Transaction",
    "__version__",
    "check_store",
    "compact_index",
    "errors",
    "open",
    "rebuild_index",
    "restore",
]

__version__ = "0.1.0"

_HOMES = {
    "CastoreError": "errors",
    "GcReport": "stream.reports",
    "ObjectInfo": "model",
    "RangePlan": "model",
    "Store": "store",
    "StoreStats": "model",
    "Transaction": "store",
    "check_store": "maintenance",
    "open": "store",
    "compact_index": "maintenance",
    "rebuild_index": "maintenance",
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
