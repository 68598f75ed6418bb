"""Changes that become visible together."""

from __future__ import annotations

import io
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import castore
from castore.errors import NameExists, NameNotFound, StoreClosed
from castore.testing.contents import Blocks, mixed, noise
from castore.testing.kind import Kind


class Transactions(Kind):
    def test_a_transaction_is_seen_whole_or_not_at_all(
        self, store: castore.Store, tmp_path: Path
    ) -> None:
        (tmp_path / "source").write_bytes(mixed(60_000))
        store.puts("old", b"old")
        store.puts("moved", b"moved")
        store.puts("d/1", b"")
        store.puts("d/2", b"")
        with self.reopen(store) as other, store.transaction() as transaction:
            transaction.put("path", tmp_path / "source")
            transaction.put("stream", io.BytesIO(b"stream"))
            transaction.puts("bytes", noise(30_000))
            transaction.copy("path", "copied")
            transaction.rename("moved", "there")
            transaction.delete("old")
            transaction.delete_prefix("d/")
            for seen in (store, other):
                assert list(seen.names()) == ["d/1", "d/2", "moved", "old"]
        assert list(store.names()) == ["bytes", "copied", "path", "stream", "there"]
        assert store.gets("copied") == store.gets("path") == mixed(60_000)
        assert store.gets("bytes") == noise(30_000)
        assert store.gets("there") == b"moved"
        assert transaction.deleted == 3

    def test_operations_of_a_transaction_apply_in_order(self, store: castore.Store) -> None:
        big = [mixed(20_000, i) for i in range(3)]
        with store.transaction() as transaction:
            transaction.puts("a", big[0])
            transaction.copy("a", "b")
            transaction.puts("a", big[1])
            transaction.rename("a", "c")
            transaction.puts("a", big[2])
            transaction.puts("gone", big[2])
            transaction.delete("gone")
            transaction.puts("p/1", b"gone")
            transaction.delete_prefix("p/")
            transaction.puts("p/2", b"kept")
            transaction.puts("x", b"1")
            transaction.delete("x")
            transaction.puts("x", b"2", if_absent=True)
        got = {name: store.gets(name) for name in store.names()}
        assert got == {"a": big[2], "b": big[0], "c": big[1], "p/2": b"kept", "x": b"2"}

    @pytest.mark.parametrize(
        ("fail", "error"),
        [
            (lambda t: t.delete("missing"), NameNotFound),
            (lambda t: t.copy("missing", "target"), NameNotFound),
            (lambda t: t.rename("missing", "target"), NameNotFound),
            (lambda t: (t.puts("new", b""), t.copy("new", "more", if_absent=True)), NameExists),
            (lambda t: operator.truediv(1, 0), ZeroDivisionError),
            (lambda t: t.puts("new/../x", b""), ValueError),
            (lambda t: t.put("new", "/no/such/file"), FileNotFoundError),
        ],
    )
    def test_a_transaction_that_fails_changes_nothing(
        self, store: castore.Store, fail: Callable[[Any], Any], error: type[Exception]
    ) -> None:
        store.puts("old", b"old")
        before = store.stats()
        with pytest.raises(error), store.transaction() as transaction:  # noqa: PT012
            transaction.puts("old", b"new")
            transaction.puts("more", noise(50_000))
            transaction.delete_prefix("o", unbounded=True)
            fail(transaction)
            transaction.puts("last", b"")
        assert {name: store.gets(name) for name in store.names()} == {"old": b"old"}
        after = store.stats()
        assert (after.objects, after.logical_bytes) == (before.objects, before.logical_bytes)
        assert after.unique_bytes == before.unique_bytes

    def test_a_put_that_fails_in_a_transaction_can_be_left_out(self, store: castore.Store) -> None:
        with store.transaction() as transaction:
            transaction.puts("first", noise(30_000, 1))
            with pytest.raises(ZeroDivisionError):
                transaction.put("failed", Blocks(noise(6_000_000, 2), ZeroDivisionError()))
            with pytest.raises(FileNotFoundError):
                transaction.put("failed", "/no/such/file")
            transaction.puts("last", noise(30_000, 2), mode=0o600)
        assert list(store.names()) == ["first", "last"]
        assert store.gets("first") == noise(30_000, 1)
        assert store.gets("last") == noise(30_000, 2)

    def test_a_transaction_tells_the_names_that_there_will_be(self, store: castore.Store) -> None:
        for name in ("a", "d/1", "d/2", "d/3", "e/1", "z"):
            store.puts(name, b"")
        with store.transaction() as transaction:
            transaction.puts("d/4", b"")
            transaction.copy("d/1", "b")
            transaction.rename("d/2", "e/2")
            transaction.delete("a")
            transaction.set_attributes("z", mode=0o600)
            assert list(transaction.names("d/")) == ["d/1", "d/3", "d/4"]
            transaction.delete_prefix("d")
            transaction.puts("d/2", b"")
            transaction.rename("e/1", "e/1")
            told = list(transaction.names())
            assert told == ["b", "d/2", "e/1", "e/2", "z"]
            assert list(transaction.names("e")) == ["e/1", "e/2"]
            assert list(transaction.names("x" * 500)) == []
        assert list(store.names()) == told
        with pytest.raises(StoreClosed):
            transaction.names()

    def test_a_transaction_ends_once(self, store: castore.Store) -> None:
        with store.transaction() as transaction:
            pass
        assert transaction.deleted == 0
        for use in (
            lambda: transaction.puts("a", b""),
            lambda: transaction.puts_many({"a": b""}),
            lambda: transaction.puts_many({}),
            lambda: transaction.delete("a"),
            lambda: transaction.delete_prefix("a", unbounded=True),
            lambda: transaction.copy("a", "b"),
            lambda: transaction.put("a", io.BytesIO()),
        ):
            with pytest.raises(StoreClosed, match="the transaction has ended"):
                use()
        transaction.abort()
        assert list(store.names()) == []

    def test_a_transaction_that_is_aborted_publishes_nothing(self, store: castore.Store) -> None:
        transaction = store.transaction()
        transaction.puts("a", b"1")
        transaction.abort()
        transaction.abort()
        with pytest.raises(StoreClosed, match="the transaction has ended"):
            transaction.commit()
        assert list(store.names()) == []
