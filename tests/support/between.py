"""Another that changes a local store right after each of its read transactions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from castore.system.lmdb_env import Index


def change_after_each_read(
    monkeypatch: pytest.MonkeyPatch, changes: Iterable[Callable[[], object]]
) -> None:
    """Of any store that this process has open, until there are no more changes."""
    left = iter(changes)
    snapshot = Index.snapshot
    changing = False

    @contextlib.contextmanager
    def then_change(index: Index, **options: Any) -> Iterator[Any]:
        nonlocal changing
        with snapshot(index, **options) as txn:
            yield txn
        if not changing:
            changing = True
            next(left, lambda: None)()
            changing = False

    monkeypatch.setattr(Index, "snapshot", then_change)
