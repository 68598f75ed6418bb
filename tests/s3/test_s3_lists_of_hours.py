"""Lists that take hours, of names in batches: what they show was so while they were at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from gc_stores import HOUR, World, collect
from memory_s3 import MemoryAttempts

import castore
from castore.s3.etags import is_batched
from castore.s3.namespace import writing

FIRST, LAST = [f"a{i}" for i in range(4)], [f"g{i}" for i in range(6)]
OLDER, NEWER = b"older", b"a newer one"
Walk = Callable[[castore.Store], Iterator[tuple[str, int]]]


@pytest.fixture
def world(make_world: Callable[..., World], probed: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """With names in a batch, of which the last are put over; a list takes a request for each."""
    monkeypatch.setattr(writing, "BATCH_NAMES_MIN", 2)
    world = make_world(batches=True)
    monkeypatch.setattr("castore.s3.namespace.listing.boot_clock", lambda: world.server.clock)
    store = world.open("one")
    with store.transaction() as t:
        for name in (*FIRST, "f", *LAST):
            t.puts(name, OLDER)
    for name in ("f", *LAST):
        store.puts(name, NEWER)
    world.pass_time(2 * HOUR)
    monkeypatch.setattr(MemoryAttempts, "page_keys", 1)
    monkeypatch.setattr("castore.s3.catalog.PAGE_NAMES", 1)
    return world


def listed(store: castore.Store) -> Iterator[tuple[str, int]]:
    for page in store._backend.catalog.listed(b""):  # type: ignore[attr-defined]
        for name, etag in page:
            yield name.decode(), len(OLDER if is_batched(etag) else NEWER)


def of_a_folder(store: castore.Store) -> Iterator[tuple[str, int]]:
    for page in store._backend.catalog.level(b"", with_records=True):
        for entry in page:
            yield entry.name.decode(), entry.record.size if entry.record else 0


def delete(store: castore.Store) -> None:
    for name in LAST:
        store.delete(name)


def delete_prefix(store: castore.Store) -> None:
    store.delete_prefix("g", unbounded=True)


def delete_all_at_once(store: castore.Store) -> None:
    with store.transaction() as t:
        for name in LAST:
            t.delete(name)


@pytest.mark.parametrize("walk", [listed, of_a_folder])
@pytest.mark.parametrize("change", [delete, delete_prefix, delete_all_at_once])
def test_they_show_no_older_version_of_what_is_deleted_meanwhile(
    world: World, walk: Walk, change: Callable[[castore.Store], None]
) -> None:
    """It is deleted, and the batch written anew without it, which then is forgotten, and with it
    what said that it is deleted."""
    walking = walk(world.open("lists"))
    shown = dict([next(walking)])
    store = world.open("one")
    change(store)
    for _ in range(4):
        world.pass_time(2 * HOUR)
        collect(store)
    assert world.server.keys("store/names/") == ["store/names/f"]
    shown |= walking
    assert shown == dict.fromkeys(FIRST, len(OLDER)) | {"f": len(NEWER)}


@pytest.mark.parametrize("walk", [listed, of_a_folder])
def test_they_show_all_that_is_there_once_and_in_order(world: World, walk: Walk) -> None:
    """However long each step takes."""
    store = world.open("one")
    for name in ("a0", "a2/b", "a2/c", "b", "h/i", "h/j", "z"):
        store.puts(name, NEWER)
    expected = list(walk(world.open("other")))
    shown = []
    for each in walk(world.open("lists")):
        shown.append(each)
        world.pass_time(HOUR)
    assert shown == sorted(expected)
    assert len(shown) == len({*shown}) >= 15
