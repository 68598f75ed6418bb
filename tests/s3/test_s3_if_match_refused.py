"""Servers that refuse every request with If-Match, even one that is for what is there."""

from __future__ import annotations

import pytest
from gc_stores import World, noise

import castore
from castore.errors import NameExists, NameNotFound, ObjectChanged, RemoteError

REFUSALS = [(412, "PreconditionFailed"), (501, "NotImplemented"), (400, "InvalidRequest")]


@pytest.fixture(params=REFUSALS, ids=lambda refusal: refusal[1])
def refusing(world: World, request: pytest.FixtureRequest) -> World:
    world.server.if_match_refusal = request.param
    return world


@pytest.mark.timeout(60)
def test_what_deletes_comes_to_an_end(refusing: World) -> None:
    store = refusing.open()
    for name in ("a", "b", "c/1", "c/2"):
        store.puts(name, noise(70_000, ord(name[0])))
    store.delete("a")
    store.rename("b", "d")
    assert store.delete_prefix("c/") == 2
    assert list(refusing.open("another").names()) == ["d"]
    with pytest.raises(NameNotFound):
        store.delete("a")
    assert store.gets("d") == noise(70_000, ord("b"))
    assert store.check(True).damaged_names == []


def test_what_was_put_meanwhile_is_not_taken_by_a_rename(refusing: World) -> None:
    store, other = refusing.open(), refusing.open("other")
    store.puts("a", b"old")
    with store.transaction() as transaction:
        transaction.rename("a", "b")
        delete = store._backend._bucket._attempts.call  # type: ignore[union-attr]

        def meanwhile(action: str, key: str, operation: str, **parameters: object) -> object:
            if operation == "delete_object" and "IfMatch" in parameters:
                other.puts("a", b"new")
            return delete(action, key, operation, **parameters)

        store._backend._bucket._attempts.call = meanwhile  # type: ignore[union-attr]
    assert (other.gets("a"), other.gets("b")) == (b"new", b"old")


def append(store: castore.Store, name: str, data: bytes) -> None:
    with store.open(name, "ab") as file:
        file.write(data)


def test_what_replaces_one_version_says_why_it_can_not(refusing: World) -> None:
    """A server that refuses the ETag that is there, with quotes and without."""
    store = refusing.open()
    store.puts("a", b"old")
    for replace in (
        lambda: store.set_attributes("a", mode=0o600),
        lambda: append(store, "a", b", and more"),
    ):
        with pytest.raises(RemoteError, match=r"refuses If-Match|was answered with"):
            replace()
    assert store.gets("a") == b"old"


def test_etags_that_are_only_known_without_quotes(world: World) -> None:
    """As older versions of Ceph know them."""
    world.server.quotes_refused = True
    store, other = world.open(), world.open("other")
    store.puts("a", noise(70_000, 1))
    store.set_attributes("a", mode=0o600)
    append(store, "a", noise(70_000, 2))
    assert other.info("a").mode == 0o600
    assert other.gets("a") == noise(70_000, 1) + noise(70_000, 2)
    with store.open("a", "ab") as file:
        file.write(b"lost")
        other.puts("a", b"put meanwhile")
        with pytest.raises(ObjectChanged):
            file.close()
    assert store.gets("a") == b"put meanwhile"
    with pytest.raises(NameExists):
        store.puts("a", b"", if_absent=True)
    assert store.check(True).problems == []
