"""What stores of the tests of faults keep, whatever fails."""

from __future__ import annotations

import random

import oracle

import castore


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(f"faults {seed}").randbytes(size)


KEPT = some_bytes(300_000, 1)


def check(store: castore.Store, **also: bytes) -> None:
    """The store holds what it should, takes more, and another process sees the same."""
    held = {"kept": KEPT, "inline": b"inline", **also}
    assert {name: store.gets(name) for name in store.names()} == held
    oracle.check_index(store)
    store.puts("after", some_bytes(100_000, 99))
    assert store.gets("after") == some_bytes(100_000, 99)
    store.delete("after")

    def elsewhere() -> None:
        assert {name: store.gets(name) for name in store.names()} == held

    said, status = oracle.in_child(lambda _: elsewhere())
    assert status == 0, said.decode()
