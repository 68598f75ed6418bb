"""Whole stores that versions of the format left: read to the last byte, checked, written to,
collected, repaired and rebuilt by this version. See tests/golden/README.md."""

from __future__ import annotations

import hashlib
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import golden_stores
import pytest
import xxhash
from memory_s3 import MemoryS3
from stores import rows

import castore
from castore.errors import UnsupportedFormat
from castore.s3 import batches, lease
from castore.s3.client import bucket

pytestmark = pytest.mark.timeout(120)
LOCAL, ON_S3 = golden_stores.stores("local"), golden_stores.stores("s3")
GRACE_S, PIN_S = 86_400.0, 8 * 86_400.0  # a dead writer's pin counts for a week
needs_layout = pytest.mark.skipif(
    sys.byteorder != "little" or struct.calcsize("P") != 8,
    reason="LMDB's file is of a little-endian machine of 64 bits",
)


class Golden:
    """A copy of one, and how it is opened."""

    def __init__(self, golden: Path, url: str, server: MemoryS3 | None) -> None:
        self.facts = golden_stores.facts(golden)
        self.url, self._server = url, server

    def open(self, **options: Any) -> castore.Store:
        return castore.open(self.url, create=False, threads=2, **options)

    def change_packs(self, changed: Callable[[bytes], bytes]) -> None:
        """What each holds."""
        if self._server is None:
            for path in Path(self.url, "packs").rglob("*.pack"):
                path.write_bytes(changed(path.read_bytes()))
            return
        for key in self._server.keys("store/packs/"):
            stored = self._server.objects[key]
            self._server.objects[key] = stored._replace(body=changed(stored.body), etag='"changed"')

    def bytes(self) -> dict[str, bytes]:
        """Of all packs, and all that names map to."""
        if self._server is not None:
            folders = ("store/packs/", "store/names/", "store/damaged/", "store/quarantine/")
            keys = [key for folder in folders for key in self._server.keys(folder)]
            return {key: self._server.objects[key].body for key in keys}
        found = {str(path): path.read_bytes() for path in Path(self.url).rglob("*.pack")}
        return found | {str(key): raw for key, raw in rows(Path(self.url))[b"names"].items()}

    def pass_time(self) -> None:
        if self._server is not None:
            self._server.clock += GRACE_S + PIN_S


def each(*kinds: list[Path]) -> list[Any]:
    return [
        pytest.param(path, id=path.name, marks=needs_layout if path in LOCAL else ())
        for kind in kinds
        for path in kind
    ]


@pytest.fixture(params=each(LOCAL, ON_S3))
def golden(request: pytest.FixtureRequest, loaded: Callable[[Path], Golden]) -> Golden:
    return loaded(request.param)


@pytest.fixture
def loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aws_environment: None
) -> Iterator[Callable[[Path], Golden]]:
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "cache"))

    def load(path: Path) -> Golden:
        if path in LOCAL:
            copy = shutil.copytree(path / "store", tmp_path / "store")
            return Golden(path, str(copy), None)
        server = golden_stores.load(path)
        monkeypatch.setattr(bucket, "Attempts", server.attempts)
        monkeypatch.setattr(lease, "boot_clock", lambda: server.clock)
        monkeypatch.setattr(batches.Batches, "now", lambda _: int(server.clock))
        return Golden(path, golden_stores.URL, server)

    return load


def check_objects(store: castore.Store, facts: dict[str, Any]) -> None:
    """All that is known of every name, and its bytes by each way of reading them."""
    names = sorted(facts["objects"], key=str.encode)
    assert list(store.names()) == names
    found = {info.name: info for info in store.list()}
    for name in names:
        known = {"deltas": 0, **facts["objects"][name]}
        sha256 = known.pop("sha256")
        assert found[name]._asdict() == store.info(name)._asdict() == known
        data = store.gets(name)
        assert hashlib.sha256(data).hexdigest() == sha256, name
        third = len(data) // 3
        ranges = [(0, third), (third, 2 * third), (2 * third, len(data))]
        assert b"".join(store.gets_many(name, ranges)) == data
        with store.open(name) as file:
            assert file.read() == data


def totals(store: castore.Store) -> dict[str, int]:
    stats = store.stats()._asdict()
    del stats["index_bytes"], stats["journal_bytes"]
    return stats


def known_totals(facts: dict[str, Any]) -> dict[str, int]:
    """The first of these stores had no deltas, and did not count them."""
    counted = ("deltas", "delta_bases", "delta_raw_bytes", "delta_stored_bytes")
    return dict.fromkeys(counted, 0) | facts["stats"]


def test_there_are_some_of_each_kind() -> None:
    kinds = ("", "-deltas", "-deltas-sha256", "-sha256")
    assert [path.name for path in LOCAL] == [f"v1-local{each}" for each in kinds]
    assert [path.name for path in ON_S3] == [*(f"v1-s3{each}" for each in kinds), "v2-s3"]


@pytest.mark.parametrize("read_only", [False, True])
def test_every_byte_is_read(golden: Golden, read_only: bool) -> None:
    with golden.open(read_only=read_only) as store:
        check_objects(store, golden.facts)
        assert totals(store) == known_totals(golden.facts)
        report = store.check(read_data=True)
        assert report.problems == []
        assert report.names == len(golden.facts["objects"])
        assert report.read_frames == report.frames > 0
        assert report.garbage


def test_the_same_bytes_are_the_same_chunks(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cuts, ids, etags and frames have not changed: a store goes on deduplicating."""
    monkeypatch.setattr("castore.s3.session.INLINE_BYTES_MAX", 4096)  # as when they were made
    monkeypatch.setattr("castore.s3.session.INLINE_ALONE_BYTES_MAX", 4096)
    with golden.open() as store:
        before = totals(store)
        for name, known in golden.facts["objects"].items():
            if name == "after the collection":
                continue  # no hints say where its chunks are
            info = store.puts("again", store.gets(name), mode=known["mode"])
            for field in ("size", "mode", "etag", "chunks", "stored_bytes"):
                assert getattr(info, field) == known[field], (name, field)
        store.delete("again")
        assert totals(store) == before


def test_it_is_written_to(golden: Golden) -> None:
    facts = golden.facts
    with golden.open() as store:
        with store.transaction() as transaction:
            transaction.puts("new", b"new" * 50_000)
            transaction.copy("text", "text/again")
            transaction.delete("a//b")
        store.rename("mixed", "moved")
    with golden.open() as store:
        assert store.gets("new") == b"new" * 50_000
        assert not store.exists("a//b")
        for name, old in (("text/again", "text"), ("moved", "mixed")):
            sha256 = facts["objects"][old]["sha256"]
            assert hashlib.sha256(store.gets(name)).hexdigest() == sha256
        assert store.check(read_data=True).problems == []


def test_later_versions_are_deltas_of_what_is_there(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castore.s3.session.INLINE_BYTES_MAX", 4096)  # as when they were made
    monkeypatch.setattr("castore.s3.session.INLINE_ALONE_BYTES_MAX", 4096)
    facts, values = golden.facts, {}
    with golden.open() as store:
        for name, known in facts["objects"].items():
            value = bytearray(store.gets(name))
            if known["chunks"]:
                for at in range(300, len(value), 900):
                    value[at] ^= 1
                store.puts(name, value)
            values[name] = bytes(value)
        assert store.stats().deltas > 0
    for repack_below in (None, 0.0, 1.0):
        with golden.open() as store:
            if repack_below is not None:
                golden.pass_time()
                store.gc(repack_below=repack_below)
            assert {name: store.gets(name) for name in store.names()} == values
            assert store.check(read_data=True).problems == []
            assert store.stats().deltas > 0


@pytest.mark.parametrize("repack_below", [0.0, 1.0])
def test_it_is_collected_without_loss(golden: Golden, repack_below: float) -> None:
    facts = golden.facts
    with golden.open() as store:
        for _ in range(3):  # on S3 one condemns, and one after the grace removes
            golden.pass_time()
            store.gc(repack_below=repack_below)
    with golden.open() as store:
        check_objects(store, facts)
        report = store.check(read_data=True)
        assert report.problems == []
        assert report.garbage == {}
        after, before = totals(store), facts["stats"]
        assert (after["objects"], after["logical_bytes"]) == (
            before["objects"],
            before["logical_bytes"],
        )
        assert after["pack_bytes"] < before["pack_bytes"]
        for name in list(facts["objects"]):
            store.delete(name)
        for _ in range(3):
            golden.pass_time()
            store.gc(repack_below=repack_below)
        assert not any(totals(store).values())


def test_a_repair_changes_nothing(golden: Golden) -> None:
    with golden.open() as store:
        report = store.check(repair=True)
        assert (report.problems, report.repaired) == ([], [])
        check_objects(store, golden.facts)


def damaged(pack: bytes) -> bytes:
    """One bit of the header: all frames are intact."""
    return pack[:8] + bytes([pack[8] ^ 1]) + pack[9:]


def of_a_later_version(pack: bytes) -> bytes:
    head = pack[:8] + b"\x63" + pack[9:56]
    return head + xxhash.xxh3_64_intdigest(head).to_bytes(8, "little") + pack[64:]


@pytest.mark.damages_store("all packs are of a later version")
def test_packs_of_a_later_castore_are_not_repaired(golden: Golden) -> None:
    """What they hold is whole, for all that this one knows."""
    golden.change_packs(of_a_later_version)
    before = golden.bytes()
    with golden.open() as store:
        report = store.check(read_data=True)
        assert report.problems
        for repair in (True, report):
            with pytest.raises(UnsupportedFormat, match="has format version 99"):
                store.check(repair=repair)
    assert golden.bytes() == before


def test_a_repair_moves_no_object_away_that_can_be_read(golden: Golden) -> None:
    """Though the same bytes are put another way now, and so have another etag."""
    objects = golden.facts["objects"]
    golden.change_packs(damaged)
    with golden.open() as store:
        report = store.check(repair=True)
        assert report.problems == []
        assert report.repaired
        assert list(store.names()) == sorted(objects, key=str.encode)
        for name, known in objects.items():
            assert hashlib.sha256(store.gets(name)).hexdigest() == known["sha256"], name


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.name)
def test_an_index_is_made_anew_of_packs_and_journal(
    path: Path, loaded: Callable[[Path], Golden]
) -> None:
    """On every machine, as nothing of LMDB's is read."""
    golden = loaded(path)
    shutil.rmtree(Path(golden.url, "index"))
    report = castore.rebuild_index(golden.url)
    assert (report.lost, report.lost_names) == ([], [])
    with golden.open() as store:
        check_objects(store, golden.facts)
        assert store.check(read_data=True).problems == []


@pytest.mark.parametrize("path", ON_S3, ids=lambda path: path.name)
def test_hints_and_caches_are_made_anew(path: Path, loaded: Callable[[Path], Golden]) -> None:
    golden = loaded(path)
    with golden.open() as store:
        store.rebuild_index()
        check_objects(store, golden.facts)


@pytest.mark.parametrize("path", each(LOCAL))
def test_its_backup_is_restored(path: Path, loaded: Callable[[Path], Golden]) -> None:
    golden = loaded(path)
    shutil.rmtree(Path(golden.url, "index"))
    report = castore.restore(path / "backup", golden.url)
    assert (report.names, report.lost) == (len(golden.facts["objects"]), [])
    with golden.open() as store:
        check_objects(store, golden.facts)
