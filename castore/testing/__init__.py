"""The contract of a store as tests, for those who write a kind of store of their own.

A subclass supplies the store, and pytest runs all the tests over it:

    from castore.testing import StoreContract

    class TestMine(StoreContract):
        @pytest.fixture
        def store(self):
            self.place = new_place(chunk_bytes_avg=2816)
            with castore.Store(MyBackend(self.place), threads=2) as store:
                yield store

        def reopen(self, store, **options):
            return castore.Store(MyBackend(self.place), **options)

`chunk_bytes_avg` is 2,816 and up to `inline_bytes_max` bytes are inline in a record (4,096, unless
the class says another number): objects of some KB have many chunks then. `SharedStoreContract` has
also the tests of a kind that other processes can open.

It needs pytest, which nothing else in castore does: the extra `test`.
"""

from __future__ import annotations

import pytest

_MODULES = (
    "contents files gets names opening processes puts sources transactions stateful collection"
)
pytest.register_assert_rewrite(*(f"castore.testing.{name}" for name in _MODULES.split()))

from castore.testing.collection import Collection  # noqa: E402
from castore.testing.files import FileObjects  # noqa: E402
from castore.testing.gets import Gets  # noqa: E402
from castore.testing.names import Names  # noqa: E402
from castore.testing.opening import Opening  # noqa: E402
from castore.testing.processes import OtherProcesses  # noqa: E402
from castore.testing.puts import Puts  # noqa: E402
from castore.testing.sources import ChangingSources  # noqa: E402
from castore.testing.transactions import Transactions  # noqa: E402

__all__ = ["SharedStoreContract", "StoreContract"]


class StoreContract(
    Puts, ChangingSources, Gets, FileObjects, Names, Transactions, Collection, Opening
):
    """What every kind of store does."""


class SharedStoreContract(StoreContract, OtherProcesses):
    """And one that other processes can open."""
