"""Makes the golden stores of a format version: `python tests/support/make_golden_stores.py v2 s3`.

Once for each version, of all kinds or of those that are named. What is there already is not made
again: see tests/golden/README.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import golden_stores
import lmdb
from golden_stores import FOLDER, URL
from memory_s3 import MemoryS3

import castore

PACK_BYTES_MAX = 20 << 10  # so that there are several
AVERAGE = 2816


def contents() -> dict[str, tuple[bytes, int]]:
    """By name: bytes and mode. Inline, raw and compressed chunks, chunks that objects share, names
    of every kind."""
    choose = random.Random(1)
    words = [choose.randbytes(3).hex() for _ in range(200)]
    shared = choose.randbytes(12_000)
    return {
        "empty": (b"", 0o644),
        "inline": (b"as it is", 0o600),
        "inline, compressed": (b"a line of text\n" * 200, 0o755),
        "a": (choose.randbytes(9_000), 0o644),
        "a/b": (shared + choose.randbytes(4_000), 0o644),
        "a//b": (choose.randbytes(1_000) + shared, 0o4755),
        "a/b/": (b"a slash at the end", 0o644),
        "text": (" ".join(choose.choices(words, k=3_000)).encode(), 0o444),
        "mixed": (choose.randbytes(6_000) + bytes(20_000) + b"0123456789" * 500, 0o644),
        "%41 ?#&+=\t\n\\:*\"'<>|": (b"odd", 0o644),
        "é/\U0001f600": (choose.randbytes(5_000), 0o644),
        "x" * 480: (b"as long as a name can be", 0),
        "two segments": (bytes(1_100 * 4 * AVERAGE), 0o644),
    }


def fill(store: castore.Store, folder: Path) -> None:
    """All kinds of changes, garbage among what they leave."""
    made = contents()
    for name, (data, mode) in made.items():
        store.puts(name, data, mode=mode)
    files = folder / "files"
    files.mkdir()
    (files / "notes").write_bytes(made["a"][0][:5_000])
    os.utime(files / "notes", ns=(0, -1_000_000_001))
    store.import_folder(files, "imported")
    with store.transaction() as transaction:
        transaction.puts("together/1", random.Random(2).randbytes(5_000))
        transaction.put("together/2", io.BytesIO(random.Random(3).randbytes(5_000)))
        transaction.copy("a", "copied")
        transaction.rename("together/1", "renamed")
        transaction.puts("gone", random.Random(4).randbytes(9_000))
        transaction.delete("gone")
    store.puts("overwritten", random.Random(5).randbytes(20_000))
    store.puts("overwritten", random.Random(6).randbytes(5_000))
    store.puts("deleted/1", random.Random(7).randbytes(8_000))
    store.puts("deleted/2", made["a/b"][0])
    store.delete_prefix("deleted")


def add_versions(store: castore.Store) -> None:
    """Later versions of what is there: deltas of one base and of several, of raw and of compressed
    ones, shared by names, and some that no name has any more."""
    made = {name: data for name, (data, _) in contents().items()}

    def edited(name: str, stride: int) -> bytes:
        data = bytearray(made[name])
        for at in range(300, len(data), stride):
            data[at] ^= 1
        return bytes(data)

    for name, stride in (("a", 900), ("text", 1_500), ("mixed", 2_000), ("two segments", 300_000)):
        store.puts(name, edited(name, stride))
    with store.transaction() as transaction:
        transaction.puts("a/b", made["a/b"][:5_000] + b"put between" + made["a/b"][5_000:])
        transaction.copy("text", "text, too")
    store.puts(
        "of two", made["a"][:5_500] + made["é/\U0001f600"] + edited("a", 700)[5_500:], like="a"
    )
    store.puts("of two/again", edited("a/b", 1_100) + edited("text", 800), like="text")
    store.puts("deleted", edited("é/\U0001f600", 600), like="é/\U0001f600")
    store.delete("deleted")
    stats = store.stats()
    assert stats.deltas > 20, stats


def fill_batches(store: castore.Store) -> None:
    """Names in batches, and all that may be said of them besides."""

    def put(folder: str, count: int) -> None:
        with store.transaction() as transaction:
            for i in range(count):
                transaction.puts(f"{folder}/{i}", f"{folder} {i}\n".encode() * (1 + 40 * i), mode=i)

    put("batched", 12)
    put("dropped", 9)
    store.delete_prefix("dropped/")
    put("dropped", 7)  # anew
    store.puts("batched/1", b"a strong single over it")
    store.set_attributes("batched/2", mode=0o600)  # a weak one
    store.delete("batched/3")  # a weak tombstone
    store.puts("batched/4", b"not for long")
    store.delete("batched/4")  # a strong one
    store.rename("batched/5", "moved out")
    store.delete("batched/6")
    store.puts("batched/6", b"there again", if_absent=True)  # over a weak tombstone


def facts(store: castore.Store) -> dict[str, Any]:
    """What every later version must find."""
    stats = store.stats()._asdict()
    del stats["index_bytes"], stats["journal_bytes"]  # they change by themselves
    deltas = {name: stats.pop(name) for name in [*stats] if name.startswith("delta")}
    assert set(deltas.values()) == {0}  # the tests say so of all
    objects = {}
    for info in store.list():
        sha256 = hashlib.sha256(store.gets(info.name)).hexdigest()
        objects[info.name] = {**info._asdict(), "sha256": sha256}
    return {"stats": stats, "objects": objects}


def write_facts(target: Path, store: castore.Store) -> None:
    text = json.dumps(facts(store), indent=1, ensure_ascii=True, sort_keys=True)
    (target / "facts.json").write_text(text + "\n")


@contextmanager
def unfinished(store: castore.Store) -> Iterator[None]:
    """A put that has stored much, and published nothing."""
    transaction = store.transaction()
    transaction.puts("never", random.Random(8).randbytes(30_000))
    yield
    transaction.abort()


def make_local(target: Path, guard: str | None, *, deltas: bool) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("castore.local.packs.PACK_BYTES_MAX", PACK_BYTES_MAX),
        mock.patch("castore.local.session.SEGMENTS_MAX", 1),  # rows before their name
        mock.patch("castore.local.session.ROWS_MAX", 8),
    ):
        path = Path(folder, "store")
        with castore.open(path, chunk_bytes_avg=AVERAGE, collision_guard=guard) as store:
            fill(store, Path(folder))
            if deltas:
                add_versions(store)
            store.backup(target / "backup")
        with castore.open(path) as store, unfinished(store):
            for part in ("journal", "packs"):
                shutil.copytree(path / part, target / "store" / part)
            (target / "store" / "index").mkdir()
            compact(path / "index", target / "store" / "index")
            shutil.copy(path / "castore.json", target / "store")
            write_facts(target, store)


def compact(index: Path, target: Path) -> None:
    """A copy of LMDB's file without the pages that are free."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(index / "data.mdb", folder)
        with lmdb.open(folder, readonly=True, lock=False) as environment:
            environment.copy(str(target), compact=True)


def make_s3(target: Path, guard: str | None, *, deltas: bool) -> None:
    server = MemoryS3()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"CASTORE_CACHE_DIR": folder}),
        mock.patch("castore.s3.client.bucket.Attempts", server.attempts),
        mock.patch("castore.s3.batches.Batches.now", side_effect=lambda: int(server.clock)),
        mock.patch("castore.s3.uploads.PACK_BYTES_FIRST", PACK_BYTES_MAX),
        mock.patch("castore.s3.uploads.PACK_BYTES_MAX", PACK_BYTES_MAX),
        mock.patch("castore.s3.session.INLINE_BYTES_MAX", 4096),
        mock.patch("castore.s3.session.INLINE_ALONE_BYTES_MAX", 4096),
        mock.patch("castore.s3.namespace.writing.BATCH_NAMES_MIN", 4),
    ):
        with castore.open(URL, chunk_bytes_avg=AVERAGE, collision_guard=guard) as store:
            fill(store, Path(folder))
            if deltas:
                add_versions(store)
            fill_batches(store)
        with castore.open(URL) as store:
            assert store.gc(repack_below=0).packs_condemned
            store.puts("after the collection", random.Random(9).randbytes(8_000))
            before = packs_at(server)
            with unfinished(store):
                while packs_at(server) == before:  # a thread puts it
                    time.sleep(0.01)
                dump(server, target / "objects")
        loaded = golden_stores.load(target)  # not of the server, where another pack may have come
        with (
            mock.patch("castore.s3.client.bucket.Attempts", loaded.attempts),
            castore.open(URL, create=False) as store,
        ):
            write_facts(target, store)


def packs_at(server: MemoryS3) -> int:
    return sum("/packs/" in key for key in [*server.objects])


def dump(server: MemoryS3, target: Path) -> None:
    """One file per object, as keys are no names of files, and their keys and times in a table."""
    target.mkdir()
    table = []
    for number, (key, stored) in enumerate(sorted(server.objects.items())):
        (target / str(number)).write_bytes(stored.body)
        table.append({"key": key, "modified": stored.modified, "file": str(number)})
    document = {"clock": server.clock, "objects": table}
    (target / "keys.json").write_text(json.dumps(document, indent=1) + "\n")


def main(version: str, *kinds: str) -> None:
    makers = (("local", make_local), ("s3", make_s3))
    for (kind, make), guard, deltas in product(makers, (None, "sha256"), (False, True)):
        whole_kind = "-".join([kind, *(["deltas"] if deltas else []), *([guard] if guard else [])])
        if kinds and whole_kind not in kinds:
            continue
        target = FOLDER / f"{version}-{whole_kind}"
        if target.exists():
            print(f"{target.name}: is there, and stays as it is")
        else:
            target.mkdir()
            make(target, guard, deltas=deltas)
            size = sum(path.stat().st_size for path in target.rglob("*"))
            print(f"{target.name}: {size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
