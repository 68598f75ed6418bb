"""Keys in a store on S3 that castore did not give: a check names them, all else goes on."""

from __future__ import annotations

import pytest
from gc_stores import World, noise
from memory_s3 import Actor

ODD = [
    "names/",
    "names/folder/",
    "names//leading",
    "names/a/../b",
    "names/" + "x" * 600,
    "packs/",
    "packs/README",
    "packs/0123456789abcdef0123456789abcdef-0123456789abcdef/",
    "pins/",
    "pins/x/",
    "pins/0123456789abcdef/",
    "gc/",
    "gc/notes",
    "hints/",
    "hints/" + "x" * 600,
]


def odd(world: World, key: str) -> None:
    with world.bucket() as bucket:
        bucket.put(key, b"" if key.endswith("/") else b"of others", idempotent=True)


@pytest.mark.parametrize("key", [*ODD, "all of them"])
def test_all_goes_on(world: World, key: str, tmp_path: object) -> None:
    keys = ODD if key == "all of them" else [key]
    store = world.open()
    for name in ("a", "b", "folder/c", "x"):
        store.puts(name, noise(70_000, ord(name[-1])))
    before = store.stats()
    for each in keys:
        odd(world, each)
    assert (
        list(store.names()) == [info.name for info in store.list()] == ["a", "b", "folder/c", "x"]
    )
    assert store.stats() == before
    store.delete("b")
    store.close()
    store = world.open("another")
    assert store.gc(grace_s=0.0).packs_removed == 1
    assert store.gc(grace_s=0.0).found_nothing
    report = store.check(True)
    assert report.exit_code == 1
    assert sorted(problem.what.split("'")[1] for problem in report.problems) == sorted(keys)
    assert {(problem.kind, problem.severity) for problem in report.problems} == {("key", "warning")}
    assert store.check(repair=True).repaired == []
    store.export_folder("", str(tmp_path))
    assert store.rebuild_index().lost == []
    assert store.delete_prefix("", unbounded=True) == 3
    with world.bucket() as bucket:  # nobody took what is another's
        there = {entry.key for entry in bucket.list()}
    assert there >= set(keys)


def test_a_long_key_leaves_the_cache_as_it_is(world: World) -> None:
    actor = Actor("one")
    store = world.open("one", actor)
    for name in "abc":
        store.puts(name, noise(70_000, ord(name)))
    for key in ("names/" + "x" * 600, "hints/" + "x" * 600):
        odd(world, key)
    store.close()
    store = world.open("one", actor)
    assert len(list(store.list())) == 3
    del actor.steps[:]
    assert len(list(store.list())) == 3
    assert [step.kind for step in actor.steps] == ["LIST"]
