"""Stores on S3 that nobody closes, as in scripts, notebooks and fsspec, end as others do."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from s3_stores import Open
from servers import Server

import castore
from castore.s3.client.bucket import Bucket

PUT = "puts('a', bytes(range(256)) * 1000)"
SCRIPTS = {
    "kept": f"store = castore.open(URL); store.{PUT}",
    "dropped": f"castore.open(URL).{PUT}",
    "dropped in a cycle": f"it = [castore.open(URL)]; it.append(it); it[0].{PUT}; del it",
    "fsspec": "castore.fs.CastoreFileSystem(URL).pipe('a', bytes(range(256)) * 1000)",
    "failed": f"store = castore.open(URL); store.{PUT}; raise SystemExit(1)",
}


def left(server: Server) -> dict[str, int]:
    with Bucket(server.settings()) as bucket:
        kinds = [entry.key.partition("/")[0] for entry in bucket.list()]
    return {kind: kinds.count(kind) for kind in ("packs", "pins", "hints")}


def users(cache: str) -> list[Path]:
    """Who may be using caches: what is found of an earlier boot of the machine empties them."""
    return [*Path(cache).glob("*/users/*")]


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_the_end_of_the_interpreter_closes_them(
    script: str, open_moto: Open, moto_server: Server, tmp_path: Path
) -> None:
    script = f"import castore, castore.fs\nURL = {moto_server.url()!r}\n{script}"
    environment = {**os.environ, "CASTORE_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert (done.stderr, done.returncode) == (b"", int("SystemExit" in script))
    assert left(moto_server) == {"packs": 1, "pins": 0, "hints": 1}
    assert users(str(tmp_path)) == []
    assert open_moto().check(read_data=True).exit_code == 0


def test_of_those_that_were_dropped_no_more_than_the_last_is_left(
    open_moto: Open, moto_server: Server
) -> None:
    open_moto()  # names the cache
    cache = os.environ["CASTORE_CACHE_DIR"]
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for i in range(10):
        castore.open(moto_server.url(), create=False).puts(f"{i}", os.urandom(100_000))
        gc.collect()
    assert len(users(cache)) == 2
    assert left(moto_server)["pins"] == 1
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) < before + 10
    assert open_moto().check(read_data=True).exit_code == 0  # who opens another ends the last
    assert left(moto_server)["pins"] == 0


def test_what_goes_on_of_one_that_was_dropped_comes_to_its_end(
    open_moto: Open, moto_server: Server
) -> None:
    data = bytes(range(256)) * 1000
    with open_moto() as store, store.transaction() as transaction:
        for i in range(20):
            transaction.puts(f"a/{i:02}", data + bytes([i]))
    listing = castore.open(moto_server.url(), create=False).list("a/")
    file = castore.open(moto_server.url(), create=False).open("a/00")
    with castore.open(moto_server.url(), create=False).transaction() as changes:
        changes.puts("b", data[::-1])
        gc.collect()
        other = open_moto(2)
        assert left(moto_server)["pins"] > 0
        changes.copy("a/01", "c")
        changes.puts("d", data[::3])
    assert [info.name for info in listing] == [f"a/{i:02}" for i in range(20)]
    assert file.read() == data + b"\0"
    assert [other.gets(name) for name in "bcd"] == [data[::-1], data + b"\1", data[::3]]
    open_moto(3)
    assert left(moto_server)["pins"] == 0
    assert other.check(read_data=True).exit_code == 0


def put_in_a_child(url: str) -> None:
    castore.open(url, create=False).puts("a", bytes(range(256)) * 1000)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_end_of_a_child_of_multiprocessing_closes_its_own(
    method: str,
    open_moto: Open,
    moto_server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_moto()
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path))
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=put_in_a_child, args=(moto_server.url(),))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert left(moto_server) == {"packs": 1, "pins": 0, "hints": 1}
    assert users(str(tmp_path)) == []
    assert open_moto().check(read_data=True).exit_code == 0


def test_a_child_ends_what_it_did_with_its_parents_store_and_no_more(
    open_moto: Open, moto_server: Server
) -> None:
    store, data = open_moto(), bytes(range(256)) * 1000
    store.puts("a", data)
    context: Any = multiprocessing.get_context("fork")
    for target, pins in ((lambda: None, 1), (lambda: store.puts("b", data[::-1]), 1)):
        child = context.Process(target=target)
        child.start()
        child.join()
        assert child.exitcode == 0
        assert left(moto_server)["pins"] == pins
    store.puts("c", data[::3])
    assert [store.gets(name) for name in "abc"] == [data, data[::-1], data[::3]]
    store.close()
    assert left(moto_server)["pins"] == 0
    assert open_moto().check(read_data=True).exit_code == 0
