"""What a commit on S3 plans: what goes at once, and what is sure to fail."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from gc_stores import World, noise
from hypothesis import given
from hypothesis import strategies as st
from memory_s3 import Actor, Step

from castore.errors import NameNotFound, ObjectChanged
from castore.model import Extent
from castore.s3 import commit
from castore.stream.backend import Held
from castore.stream.decoding import Bytes
from castore.stream.operations import Copy, Delete, DeletePrefix, Operation
from castore.stream.reader import Reader

pytestmark = pytest.mark.usefixtures("aws_environment")

NAMES = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
OPERATIONS = st.lists(
    st.one_of(
        st.builds(Delete, NAMES),
        st.builds(Copy, NAMES, NAMES, st.just(0), st.just(False), st.booleans()),
        st.builds(DeletePrefix, st.just(b"p")),
    ),
    max_size=12,
)


@given(OPERATIONS)
def test_groups_keep_the_order_of_what_depends_on_each_other(operations: list[Operation]) -> None:
    found = list(commit.groups(operations))
    assert [operation for group in found for operation in group] == operations
    for group in found:
        assert len({type(operation) for operation in group}) == 1
        for i, operation in enumerate(group):
            changes, reads = commit.names_of(operation)
            for other in group[:i]:
                others_changes, others_reads = commit.names_of(other)
                assert not changes & (others_changes | others_reads)
                assert not reads & others_changes
    last = [i for i, operation in enumerate(operations) if isinstance(operation, Copy)][-1:]
    for at in last:
        assert [operations[at]] in found


def test_copies_at_once_are_bounded() -> None:
    operations = [Copy(b"s", b"t%d" % i, 0) for i in range(2 * commit.COPIES_MAX + 10)]
    sizes = [len(group) for group in commit.groups(operations)]
    assert sizes == [commit.COPIES_MAX, commit.COPIES_MAX, 9, 1]


@pytest.mark.parametrize(
    "change",
    ["append", "put", "delete", "delete_prefix", "rename", "copy", "moved", "copied twice"],
)
def test_appending_to_what_the_commit_itself_changed_fails_before_anything_is_changed(
    world: World, change: str
) -> None:
    store = world.open()
    store.puts("a/log", b"0")
    store.puts("b", b"2")
    transaction = store.transaction()
    file = transaction.open("a/log", "ab")
    file.write(b"1")
    match change:
        case "append":
            with transaction.open("a/log", "ab") as other:
                other.write(b"2")
        case "put":
            transaction.puts("a/log", b"2")
        case "delete":
            transaction.delete("a/log")
        case "delete_prefix":
            transaction.delete_prefix("a")
        case "copy":
            transaction.copy("b", "a/log")
        case "moved":
            transaction.rename("b", "a/log")
        case "copied twice":
            transaction.copy("a/log", "c")
            transaction.copy("b", "c")
            transaction.copy("c", "a/log")
        case _:
            transaction.rename("a/log", "moved")
    file.close()
    with pytest.raises(ObjectChanged, match="a/log"):
        transaction.commit()
    left = [(name, store.gets(name)) for name in store.names()]
    assert left == [("a/log", b"0"), ("b", b"2")]


def test_appending_to_the_same_bytes_is_no_change(world: World) -> None:
    store = world.open()
    store.puts("a", b"0")
    store.puts("same", b"0")
    with store.transaction() as transaction:
        transaction.puts("a", b"0")
        transaction.rename("a", "a")
        transaction.copy("same", "a")
        transaction.set_attributes("a", mode=0o600)
        with transaction.open("a", "ab") as file:
            file.write(b"1")
    assert store.gets("a") == b"01"


def test_a_copy_of_what_is_not_there_says_so_before_what_is_over_it(world: World) -> None:
    store = world.open()
    store.puts("a", b"0")
    transaction = store.transaction()
    transaction.copy("none", "a")
    with transaction.open("a", "ab") as file:
        file.write(b"1")
    with pytest.raises(NameNotFound, match="none"):
        transaction.commit()
    assert store.gets("a") == b"0"


def test_a_mode_that_is_set_beside_a_rename_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came after the source was read, and before that was deleted."""
    store, other = world.open("one", actor := Actor("one")), world.open("other")
    store.puts("source", b"0", mode=0o644)
    come = actor.before

    def meanwhile(step: Step) -> bool:
        if step == Step("DELETE", "names/source"):
            actor.before = come  # type: ignore[method-assign]
            other.set_attributes("source", mode=0o600)
        return come(step)

    monkeypatch.setattr(actor, "before", meanwhile)
    store.rename("source", "target")
    modes = {info.name: info.mode for info in world.open("reader").list()}
    assert modes == {"source": 0o600, "target": 0o644}


def test_a_cache_that_is_cut_short_while_it_is_read_is_no_damage(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check of the bytes and their being copied; what is read next is fetched."""
    with world.open("one") as store:
        store.puts("log", noise(200_000, 1))
    store = world.open("one")
    read = Reader.chunks

    def cut(reader: Reader, extents: Sequence[Extent], held: Held) -> list[Bytes]:
        found = read(reader, extents, held)
        for file in world.cache_of("one").rglob("frames/*"):
            os.truncate(file, 0)
        return found

    monkeypatch.setattr(Reader, "chunks", cut)
    assert store.gets("log") == noise(200_000, 1)
    with store.open("log", "ab") as file:
        file.write(b"one line")
    for each in (store, world.open("reader")):
        assert each.gets("log") == noise(200_000, 1) + b"one line"
