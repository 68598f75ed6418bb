"""Commits of many names on S3: what they ask, and what is left when something fails."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from asked import requests
from fault_proxy import FaultProxy, answer, reset
from gc_stores import World
from memory_s3 import Actor
from s3_stores import Open
from threads import in_threads

import castore
from castore.errors import AccessDenied, NameExists, NameNotFound
from castore.s3 import copies, names, presence, session, versions
from castore.s3.namespace import writing
from castore.stream import sourcefile

pytestmark = pytest.mark.usefixtures("aws_environment")

MANY = 21


def filled(store: castore.Store, folder: str = "a", count: int = MANY) -> list[str]:
    with store.transaction() as transaction:
        for i in range(count):
            transaction.puts(f"{folder}/{i:03}", b"%d" % i)
    return [f"{folder}/{i:03}" for i in range(count)]


# ---------------------------------------------------------------- what is asked


def test_many_deletions_are_a_list_and_one_request(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    gone = filled(store)[3:]
    proxy.clear()
    with store.transaction() as transaction:
        for name in gone:
            transaction.delete(name)
    assert requests(proxy) == ["LIST names", "POST delete"]
    assert transaction.deleted == len(gone)
    assert list(store.names()) == ["a/000", "a/001", "a/002"]


def test_few_deletions_go_one_by_one(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    filled(store, count=3)
    proxy.clear()
    with store.transaction() as transaction:
        transaction.delete("a/000")
        transaction.delete("a/002")
    assert requests(proxy) == ["DELETE names x2", "HEAD names x2"]


def test_a_folder_goes_with_a_list_and_one_request(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    filled(store)
    store.puts("b", b"")
    proxy.clear()
    assert store.delete_prefix("a") == MANY
    assert requests(proxy) == ["LIST names", "POST delete"]
    assert list(store.names()) == ["b"]
    proxy.clear()
    assert store.delete_prefix("a") == 0
    assert requests(proxy) == ["LIST names"]


def test_many_copies_are_a_list_and_two_requests_each(
    open_proxied: Open, proxy: FaultProxy
) -> None:
    filled(open_proxied(1))
    store = open_proxied(2)
    sources = list(store.names())
    for expected in (f"GET names x{MANY}", ""):  # those that are known are not asked for again
        proxy.clear()
        with store.transaction() as transaction:
            for name in sources:
                transaction.copy(name, f"b{expected}{name}")
        asked = [f"PUT names x{MANY}", "LIST names", expected]
        assert requests(proxy) == sorted(filter(None, asked))
    assert [store.gets(f"b{name}") for name in sources] == [b"%d" % i for i in range(MANY)]


def test_of_large_objects_few_are_copied_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = world.open()
    data = {f"a/{i}": random.Random(i).randbytes(200_000 if i % 2 else 70) for i in range(9)}
    for name, each in data.items():
        store.puts(name, each)
    monkeypatch.setattr(copies, "SEGMENT_BYTES_MAX", 5000)
    sizes: list[int] = []
    results_of = session.results_of
    for module in (session, copies):
        monkeypatch.setattr(
            module, "results_of", lambda it: sizes.append(len(it)) or results_of(it)
        )
    with store.transaction() as transaction:
        for name in [*data, "a/0"]:
            transaction.copy(name, f"b{name}")
    assert len(sizes) > 7
    other = world.open("other")
    assert {name[1:]: other.gets(name) for name in other.names("b")} == data


def test_copies_whose_segments_are_read_leave_no_thread_waiting_for_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where manifests are large, or no cache can be kept: more are read at once than there are
    threads, each of which needs one more request."""
    data = {f"a/{i}": random.Random(i).randbytes(200_000) for i in range(9)}
    with world.open() as store:
        for name, each in data.items():
            store.puts(name, each)
    monkeypatch.setattr(versions, "FIRST_BYTES", 256)
    store = world.open("other", max_concurrency=2)

    def copy() -> None:
        with store.transaction() as transaction:
            for name in data:
                transaction.copy(name, f"b{name}")

    in_threads(copy)
    assert {name[1:]: store.gets(name) for name in store.names("b")} == data


def test_many_renames(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    sources = filled(store)
    proxy.clear()
    with store.transaction() as transaction:
        for name in sources:
            transaction.rename(name, f"b{name}")
    assert requests(proxy) == [f"DELETE names x{MANY}", "LIST names", f"PUT names x{MANY}"]
    assert list(store.names()) == [f"b{name}" for name in sources]


def test_many_get_other_attributes(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    every = filled(store)
    proxy.clear()
    with store.transaction() as transaction:
        for name in every:
            transaction.set_attributes(name, mode=0o600)
    puts = proxy.matching("PUT", "/names/")
    assert requests(proxy) == ["LIST names", f"PUT names x{MANY}"]
    assert any(one.began < other.began < one.ended for one in puts for other in puts), "at once"
    assert {info.mode for info in store.list()} == {0o600}
    assert [store.gets(name) for name in every] == [b"%d" % i for i in range(MANY)]


def test_a_marker_that_is_copied_last_is_there_last(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    sources = filled(store)
    with store.transaction() as transaction:
        for name in sources:
            transaction.copy(name, f"b/{name}")
        transaction.copy("a/000", "b/_SUCCESS")
    [marker] = proxy.matching("PUT", "/_SUCCESS")
    assert all(0 < other.answered < marker.began for other in proxy.matching("PUT", "/b/a/"))


def test_a_folder_in_and_out(
    open_proxied: Open, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there already is learnt from a list; a file that is as it was put is not put."""
    # Else what is imported within a tick of the clock is read once more by the next import.
    monkeypatch.setattr(sourcefile, "YOUNG_NS", 0)
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    for i in range(MANY):
        (folder / "a" / f"{i:03}").write_bytes(b"%d" % i)
    store = open_proxied(1)
    proxy.clear()
    assert store.import_folder(folder, "to").files == MANY
    assert requests(proxy) == ["LIST names", f"PUT names x{MANY}"]
    assert store.import_folder(folder, "to").same_files == MANY
    assert requests(proxy) == ["LIST names"]
    (folder / "a" / "007").write_bytes(b"another")
    report = open_proxied(2).import_folder(folder, "to")
    assert (report.files, report.same_files) == (1, MANY - 1)
    assert f"GET names x{MANY}" in requests(proxy)
    store.close()
    reader = open_proxied(3)
    proxy.clear()
    assert reader.export_folder("to", tmp_path / "out").files == MANY
    asked = requests(proxy)
    assert asked == ["GET listings", f"GET names x{MANY + 1}", "LIST listings", "LIST names"]
    assert (tmp_path / "out" / "a" / "007").read_bytes() == b"another"


# ---------------------------------------------------------------- what fails


def test_a_name_that_is_missing_fails_before_anything_is_changed(
    open_proxied: Open, proxy: FaultProxy
) -> None:
    store = open_proxied()
    every = filled(store)
    proxy.clear()
    for change in ("delete", "copy"):
        transaction = store.transaction()
        for name in [*every, "a/none"]:
            if change == "delete":
                transaction.delete(name)
            else:
                transaction.copy(name, f"b{name}")
        with pytest.raises(NameNotFound, match="a/none"):
            transaction.commit()
    transaction = store.transaction()
    for i in range(MANY):
        transaction.copy("a/001", f"a/{i + MANY - 10:03}", if_absent=True)
    with pytest.raises(NameExists, match="a/011"):
        transaction.commit()
    assert not [exchange for exchange in proxy.exchanges if exchange.kind in ("PUT", "POST")]
    assert list(store.names()) == every


@pytest.mark.parametrize("how", ["405", "501", "400", "lost", "reset"])
def test_a_request_for_many_that_fails_is_followed_by_one_each(
    open_proxied: Open, proxy: FaultProxy, how: str
) -> None:
    """A server that knows no such request; one whose answer is lost, when all are gone, or none."""
    faults: dict[str, Any] = {
        "405": answer(405, "MethodNotAllowed"),
        "501": answer(501, "NotImplemented"),
        "400": answer(400, "MalformedXML"),
        "lost": reset(applied=True),
        "reset": reset(),
    }
    store = open_proxied()
    filled(store)
    proxy.clear()
    rule = proxy.inject("POST", "", faults[how])
    assert store.delete_prefix("a") == MANY
    assert rule.applied == 1
    assert requests(proxy) == [f"DELETE names x{MANY}", "LIST names", "POST delete"]
    assert list(store.names()) == []


def test_who_may_not_delete_hears_it_once(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    every = filled(store)
    proxy.clear()
    proxy.inject("POST", "", answer(403, "AccessDenied"))
    with pytest.raises(AccessDenied):
        store.delete_prefix("a")
    assert requests(proxy) == ["LIST names", "POST delete"]
    assert list(store.names()) == every


def test_one_that_is_refused_is_named_and_the_others_are_gone(world: World) -> None:
    store = world.open()
    filled(store)
    world.server.refuse = lambda step: (
        (403, "AccessDenied") if (step.kind, step.key[-3:]) == ("DELETE", "007") else None
    )
    with pytest.raises(AccessDenied, match="names/a/007"):
        store.delete_prefix("a")
    assert list(store.names()) == ["a/007"]


def test_what_is_overwritten_meanwhile_goes_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where names go one by one: by another request, as the first was conditional."""
    store, other = world.open(), world.open("other")
    every = filled(store)
    delete = writing.delete_versions
    gone: list[set[str]] = []

    def meanwhile(bucket: Any, versions: Any) -> set[str]:
        other.puts(every[5], b"new")
        gone.append(delete(bucket, versions))
        return gone[-1]

    monkeypatch.setattr(writing, "delete_versions", meanwhile)
    with store.transaction() as transaction:
        for name in every:
            transaction.delete(name)
    assert [len(each) for each in gone] == [MANY - 1], "one had another ETag"
    assert list(other.names()) == []


def test_a_request_for_many_that_lands_late_takes_nothing_newer(world: World) -> None:
    actor = Actor("one")
    store, other = world.open(actor=actor), world.open("other")
    every = filled(store)
    actor.lose_at = len(actor.steps) + 1  # behind the list
    assert store.delete_prefix("a") == MANY
    assert actor.steps[actor.lose_at].kind == "POST"
    with other.transaction() as transaction:
        for name in every:
            transaction.puts(name, b"newer")
    world.server.land()
    assert list(world.open("third").names()) == every


@pytest.mark.parametrize("seed", range(4))
def test_commits_of_many_operations_come_to_what_they_would_one_by_one(
    world: World, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(names, "DELETES_MIN", 2)
    monkeypatch.setattr(presence, "LIST_MIN", 2)
    choose = random.Random(seed)
    store, expected = world.open(), dict[str, bytes]()
    every = [f"{folder}/{i}" for folder in "ab" for i in range(8)]
    for _ in range(12):
        model = dict(expected)
        with store.transaction() as transaction:
            for _ in range(choose.randrange(25)):
                there = sorted(model)
                name = choose.choice(every)
                if not there or choose.random() < 0.3:
                    model[name] = choose.randbytes(choose.choice([3, 70_000]))
                    transaction.puts(name, model[name])
                    continue
                source = choose.choice(there)
                match choose.randrange(7):
                    case 0 | 1 | 2:
                        transaction.delete(source)
                        del model[source]
                    case 3 | 4:
                        transaction.copy(source, name)
                        model[name] = model[source]
                    case 5:
                        transaction.rename(source, name)
                        model[name] = model.pop(source)
                    case _:
                        transaction.delete_prefix(name[0])
                        model = {each: model[each] for each in there if each[0] != name[0]}
        expected = model
        assert list(store.names()) == sorted(expected)
    other = world.open("other")
    assert {name: other.gets(name) for name in other.names()} == expected


# ---------------------------------------------------------------- which are there


@pytest.mark.parametrize("page_keys", [7, 1000])
def test_presence_of_names_near_and_far(
    world: World, monkeypatch: pytest.MonkeyPatch, page_keys: int
) -> None:
    monkeypatch.setattr("memory_s3.MemoryAttempts.page_keys", page_keys)
    monkeypatch.setattr(presence, "PAGE_KEYS", page_keys)
    monkeypatch.setattr(presence, "LIST_MIN", 3)
    store = world.open()
    there = [f"{folder}/{i:03}é" for folder in ("a", "m", "é") for i in range(25)]
    with store.transaction() as transaction:
        for name in there:
            transaction.puts(name, name.encode())
    backend: Any = store._backend
    found = {name: etag for page in backend.catalog.listed(b"") for name, etag in page}
    choose = random.Random(7)
    for count in (1, 2, 5, 40, 75):
        wanted = [
            *(name.encode() for name in choose.sample(there, count)),
            *(f"{choose.choice('abméz')}/{choose.randrange(99):03}x".encode() for _ in range(9)),
        ]
        singles = presence.singles_of(backend._bucket, backend._requests, wanted)
        asked = {name: single.etag for name, single in singles.items()}
        assert asked == {name: found[name] for name in wanted if name in found}


def test_a_list_that_is_not_worth_it_ends_with_its_page(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_s3.MemoryAttempts.page_keys", 20)
    monkeypatch.setattr(presence, "PAGE_KEYS", 20)
    actor = Actor("reader")
    store = world.open("one", actor)
    with store.transaction() as transaction:
        for i in range(100):
            transaction.puts(f"{i:03}", b"")
    backend: Any = store._backend
    wanted = [b"%03d" % i for i in range(0, 100, 6)]
    assert len(wanted) >= presence.LIST_MIN
    before = len(actor.steps)
    assert len(presence.singles_of(backend._bucket, backend._requests, wanted)) == len(wanted)
    assert [step.kind for step in actor.steps[before:]].count("LIST") == 1
