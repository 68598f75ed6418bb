"""Commits of several threads in one transaction of the index, and each with its own outcome."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import castore
from castore.errors import CommitUnknown, NameExists, StoreFull
from castore.local.catalog import LocalCatalog
from castore.local.groups import Commit, PacksVanished


def catalog_of(store: castore.Store) -> LocalCatalog:
    catalog = store._catalog
    assert isinstance(catalog, LocalCatalog)
    return catalog


def transactions(store: castore.Store) -> int:
    with catalog_of(store).index.gate, catalog_of(store).index.snapshot() as txn:
        return txn.id()


def together(store: castore.Store, actions: list[Callable[[], Any]]) -> list[Any]:
    """What comes of the actions, or their errors. They commit when all of them are about to, the
    first one leading."""
    results: list[Any] = [None] * len(actions)

    def act(at: int) -> None:
        try:
            results[at] = actions[at]()
        except Exception as error:
            results[at] = error

    catalog = catalog_of(store)
    threads = [threading.Thread(target=act, args=(at,)) for at in range(len(actions))]
    with catalog.index.write_gate:
        for count, thread in enumerate(threads, 1):
            thread.start()
            while len(catalog._groups._waiting) < count and thread.is_alive():
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    return results


def puts(store: castore.Store, name: str, **options: Any) -> Callable[[], Any]:
    return lambda: store.puts(name, name.encode() * 2000, **options)


def test_commits_that_wait_are_one_transaction(store: castore.Store) -> None:
    store.puts("first", b"1")
    before = transactions(store)
    names = [f"name {i}" for i in range(8)]
    assert all(together(store, [puts(store, name) for name in names]))
    assert transactions(store) == before + 1
    for name in names:
        assert store.gets(name) == name.encode() * 2000
    store.puts("last", b"1")
    assert transactions(store) == before + 2


def test_one_that_can_not_be_fails_alone(store: castore.Store) -> None:
    store.puts("taken", b"old")

    def taken() -> None:
        with store.transaction() as transaction:
            transaction.puts("new", b"new")
            transaction.copy("first", "taken", if_absent=True)

    actions = [puts(store, "first"), taken, puts(store, "second"), puts(store, "third")]
    first, failed, second, third = together(store, actions)
    assert isinstance(failed, NameExists)
    assert (first.name, second.name, third.name) == ("first", "second", "third")
    assert list(store.names()) == ["first", "second", "taken", "third"]
    assert store.gets("taken") == b"old"


def test_the_last_of_two_puts_of_a_name_is_what_it_maps_to(store: castore.Store) -> None:
    together(store, [lambda n=n: store.puts("name", b"%d" % n * 5000) for n in range(5)])  # type: ignore[misc]
    assert store.gets("name") == b"4" * 5000
    store.close()
    castore.rebuild_index(store.path)  # from the journal
    with castore.open(store.path) as again:
        assert again.gets("name") == b"4" * 5000


def test_packs_that_vanished_are_of_who_relied_on_them(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, seen = LocalCatalog._apply, list[Any]()

    def apply(catalog: LocalCatalog, tables: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        seen.append(batch)
        if batch in seen[1:2] and seen.count(batch) <= 2:  # in the group, and then by itself
            raise PacksVanished(set())
        return whole(catalog, tables, batch, *rest, **options)

    monkeypatch.setattr(LocalCatalog, "_apply", apply)
    names = ["first", "second", "third"]
    assert [each.name for each in together(store, [puts(store, name) for name in names])] == names
    assert [seen.count(batch) for batch in (seen[0], seen[1])] == [2, 3]


@pytest.mark.parametrize("landed", [False, True])
def test_who_led_is_interrupted(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, landed: bool
) -> None:
    """What the others are told is right either way; nothing is published twice."""
    whole, struck = LocalCatalog._write, []

    class Soft(Exception):
        pass

    def write(catalog: LocalCatalog, *arguments: Any, **options: Any) -> None:
        if struck:
            return whole(catalog, *arguments, **options)
        struck.append(True)
        if landed:
            whole(catalog, *arguments, **options)
        raise Soft

    monkeypatch.setattr(LocalCatalog, "_write", write)
    actions = [puts(store, name, if_absent=True) for name in ("first", "second", "third")]
    first, second, third = together(store, actions)
    assert isinstance(first, Soft)
    assert isinstance(second, CommitUnknown)
    assert isinstance(third, CommitUnknown)
    assert len(list(store.names())) == (3 if landed else 0)
    store.puts("second", b"again")
    assert store.gets("second") == b"again"


def test_a_full_disk_is_told_to_all(store: castore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(catalog: LocalCatalog, *arguments: Any, **options: Any) -> None:
        raise StoreFull("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(LocalCatalog, "_write", write)
        found = together(store, [puts(store, name) for name in ("first", "second")])
    assert [type(each) for each in found] == [StoreFull, StoreFull]
    assert store.puts("first", b"1").size == 1


def test_a_child_has_no_commits_of_its_parents_threads(store: castore.Store) -> None:
    catalog = catalog_of(store)
    thread = threading.Thread(target=puts(store, "parent's"))
    with catalog.index.write_gate:
        thread.start()
        while not catalog._groups._waiting:
            time.sleep(0.001)
        child = os.fork()
        if not child:
            try:
                before = transactions(store)
                store.puts("child's", b"1")
                os._exit(transactions(store) - before)
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    thread.join()
    assert list(store.names()) == ["child's", "parent's"]


def test_who_is_interrupted_as_another_takes_it_waits_for_that(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packs are kept until it is committed, or is not."""
    groups = catalog_of(store)._groups
    interrupted, ended = threading.Event(), threading.Event()

    def wait(commit: Commit, timeout_s: float) -> None:
        groups._waiting.popleft()  # the leader has it in hand, and has not said so yet
        interrupted.set()
        raise KeyboardInterrupt

    def act() -> None:
        try:
            store.puts("name", b"x")
        except KeyboardInterrupt:
            ended.set()

    monkeypatch.setattr(Commit, "wait", wait)
    groups._led = True
    with catalog_of(store).index.write_gate:
        thread = threading.Thread(target=act)
        thread.start()
        assert interrupted.wait(10)
        assert not ended.wait(0.2)
    thread.join()
    assert ended.is_set()
