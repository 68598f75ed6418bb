"""Appending: a new object that begins as the old one, whose data does not move."""

from __future__ import annotations

import random
from typing import Any

import pytest

from castore.errors import NameExists, ObjectChanged, UnpublishedResourceWarning
from castore.local.session import LocalSession

DATA = random.Random(7).randbytes(600_000)


@pytest.mark.parametrize("size", [0, 10, 4096, 4097, 65_536, 65_537, 300_000])
@pytest.mark.parametrize("more", [0, 1, 255, 300_000])
@pytest.mark.sampled(8)
def test_it_is_what_a_put_of_all_of_it_is(any_store: Any, size: int, more: int) -> None:
    any_store.puts("a", DATA[:size], mode=0o600)
    with any_store.open("a", "ab") as file:
        assert (file.tell(), file.mode) == (size, "ab")
        file.write(DATA[size : size + more // 2])
        file.write(DATA[size + more // 2 : size + more])
        assert file.tell() == size + more
        assert any_store.size("a") == size
    whole = any_store.puts("b", DATA[: size + more], mode=0o600)
    info = any_store.info("a")
    assert file.info == info
    assert info[1:2] + info[3:6] == whole[1:2] + whole[3:6]  # size, mode, etag, chunks
    assert any_store.gets("a") == DATA[: size + more]


def test_a_name_that_is_not_there_is_new(any_store: Any) -> None:
    with any_store.open("new", "ab") as file:
        file.write(b"1")
        assert file.tell() == 1
    assert any_store.gets("new") == b"1"
    file = any_store.open("newer", "ab")
    any_store.puts("newer", b"other")
    with pytest.raises(NameExists):
        file.close()
    assert any_store.gets("newer") == b"other"


def test_only_the_last_chunk_is_stored_again(any_store: Any) -> None:
    any_store.puts("a", DATA)
    before = any_store.stats().stored_bytes
    with any_store.open("a", "ab") as file:
        file.write(b"x")
    largest = 4 * 65_536 + 256
    assert any_store.stats().stored_bytes - before <= largest


@pytest.mark.parametrize("how", ["put", "deleted"])
def test_what_changed_meanwhile_is_not_overwritten(any_store: Any, how: str) -> None:
    any_store.puts("a", DATA)
    file = any_store.open("a", "ab")
    file.write(b"x")
    if how == "put":
        any_store.puts("a", b"other")
    else:
        any_store.delete("a")
    with pytest.raises(ObjectChanged, match="'a' was put anew or deleted"):
        file.close()
    assert any_store.exists("a") == (how == "put")


def test_the_same_bytes_put_again_are_no_change(any_store: Any) -> None:
    any_store.puts("a", DATA)
    with any_store.open("a", "ab") as file:
        any_store.puts("a", DATA)
        file.write(b"x")
    assert any_store.gets("a") == DATA + b"x"


def test_one_that_is_given_up_leaves_the_object(any_store: Any) -> None:
    any_store.puts("a", DATA)
    any_store.open("a", "ab").abort()
    with pytest.warns(UnpublishedResourceWarning):
        any_store.open("a", "ab")
    assert any_store.gets("a") == DATA


def test_chunks_that_can_not_be_relied_on_are_stored_anew(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.puts("a", DATA)
    before = store.stats().pack_bytes
    look_up = LocalSession.look_up

    def some(session: LocalSession, chunk_ids: Any) -> Any:
        known = look_up(session, chunk_ids)
        return {each: at for each, at in known.items() if each[0] % 2}

    with monkeypatch.context() as patched:
        patched.setattr(LocalSession, "look_up", some)
        with store.open("a", "ab") as file:
            file.write(b"x")
    assert store.gets("a") == DATA + b"x"
    assert store.info("a").etag == store.puts("b", DATA + b"x").etag
    assert store.stats().pack_bytes - before > len(DATA) // 4


def test_a_collection_between_leaves_the_object_whole(store: Any) -> None:
    store.puts("a", DATA)
    file = store.open("a", "ab")
    store.delete("a")
    store.gc()
    store.puts("a", DATA)
    file.write(b"x")
    file.close()
    assert store.gets("a") == DATA + b"x"


def test_appended_in_a_transaction(any_store: Any) -> None:
    any_store.puts("a", DATA, mode=0o640)
    with any_store.transaction() as t:
        with t.open("a", "ab") as file, t.open("new", "ab") as new:
            assert (file.tell(), file.mode, new.tell()) == (len(DATA), "ab", 0)
            file.write(b"x")
            new.write(b"1")
        t.puts("marker", b"")
        assert any_store.gets("a") == DATA
    assert any_store.gets("a") == DATA + b"x"
    assert any_store.info("a").mode == 0o640
    assert (any_store.gets("new"), any_store.exists("marker")) == (b"1", True)


def test_mode_bits_that_are_given_meanwhile_stay(any_store: Any) -> None:
    for name in ("a", "b"):
        any_store.puts(name, DATA, mode=0o644)
    with any_store.open("a", "ab") as file:
        file.write(b"x")
        any_store.set_attributes("a", mode=0o600)
    with any_store.transaction() as t:
        t.set_attributes("b", mode=0o600)
        with t.open("b", "ab") as file:
            file.write(b"x")
    for name in ("a", "b"):
        assert any_store.gets(name) == DATA + b"x"
        assert any_store.info(name).mode == 0o600


@pytest.mark.parametrize("how", ["by another", "by itself", "created"])
def test_a_transaction_that_appends_to_what_changed_publishes_nothing(
    any_store: Any, how: str
) -> None:
    if how != "created":
        any_store.puts("a", DATA)
    t = any_store.transaction()
    t.puts("before", b"")
    if how == "by itself":
        t.puts("a", b"other")
    with t.open("a", "ab") as file:
        file.write(b"x")
    t.puts("after", b"")
    if how != "by itself":
        any_store.puts("a", b"other")
    if how == "by itself" and any_store.path.startswith("s3://"):
        # Seen when it is its turn: what a transaction does to one name goes one after another.
        with pytest.raises(ObjectChanged):
            t.commit()
        return
    with pytest.raises(NameExists if how == "created" else ObjectChanged):
        t.commit()
    assert any_store.gets("a") == (DATA if how == "by itself" else b"other")
    assert not any_store.exists("before")
    assert not any_store.exists("after")


def test_an_append_that_fails_leaves_no_file_open_in_the_transaction(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.puts("a", DATA)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with store.transaction() as t:
        t.puts("b", b"1")
        with monkeypatch.context() as patched:
            patched.setattr("castore.stream.reader.Reader.chunk", fail)
            with pytest.raises(KeyboardInterrupt):
                t.open("a", "ab")
    assert store.gets("a") == DATA
    assert store.gets("b") == b"1"
