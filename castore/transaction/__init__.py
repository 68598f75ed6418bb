"""Puts and changes of names that become visible together."""

from __future__ import annotations

from castore.transaction.names import NameVerbs
from castore.transaction.objects import ObjectVerbs, Readable, StrPath, object_info

__all__ = ["Readable", "StrPath", "Transaction", "object_info"]


class Transaction(ObjectVerbs, NameVerbs):
    """Puts and changes of names that become visible together.

    At the end of the `with` block, or by `commit`; none of them if the block raises. Operations
    apply in their order (a file's, when it is closed); reading the store meanwhile shows none of
    them. Several threads may use it. After its end every method raises StoreClosed.

    >>> t = store.transaction()
    >>> _ = t.puts("a", b"1")
    >>> store.exists("a")
    False
    >>> t.commit()
    >>> store.exists("a")
    True
    """
