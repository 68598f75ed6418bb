"""Many deletions in one commit, beside puts."""

from __future__ import annotations

from typing import Any

import pytest

from castore.errors import NameNotFound


def test_they_apply_in_their_order(any_store: Any) -> None:
    for i in range(20):
        any_store.puts(f"a/{i}", b"%d" % i)
    with any_store.transaction() as t:
        for i in range(20):
            t.delete(f"a/{i}")
        t.puts("a/3", b"new")
        t.puts("b", b"1")
        t.delete("b")
        t.puts("b", b"2")
        t.delete("a/3")
        t.puts("c", b"3")
        t.delete("b")
    assert t.deleted == 23
    assert list(any_store.names()) == ["c"]


def test_one_that_is_missing_fails_before_any(any_store: Any) -> None:
    any_store.puts("a", b"1")
    t = any_store.transaction()
    t.delete("a")
    t.delete("b")
    with pytest.raises(NameNotFound, match="named 'b'"):
        t.commit()
    assert any_store.exists("a")
