"""A collection, and between any two of its steps something else: nothing that counts is lost.

Each scenario is a store with every kind of garbage, an action, and the moment of the collection at
which it happens. The guards that make it safe are then taken out one by one, and the same scenarios
show what is lost without each.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
from collected import assert_rows_complete, everything, pack_files
from sessions import rows, small_stages, some_bytes

import castore
from castore.errors import StoreBusy
from castore.local.catalog import LocalCatalog
from castore.local.gc.mark import Marker
from castore.local.gc.repack import Repacker
from castore.local.gc.sweep import Sweeper
from castore.local.locks import PackLocks
from castore.local.meta import GC_SEQ, next_number

SMALL: dict[str, Any] = {"chunk_bytes_avg": 2816, "threads": 1}
DEAD, SHARED, NEW = (some_bytes(size, size) for size in (40_000, 30_000, 150_000))
ALIVE = [some_bytes(12_000, n) for n in range(4)]  # in one pack with more that is
GONE = [some_bytes(40_000, 100 + n) for n in range(4)]
BEGUN = NEW[:70_000] + DEAD + SHARED + GONE[2]


@pytest.fixture
def fast_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "caches"))
    small_steps(monkeypatch)
    with oracle.fast_folder(tmp_path) as folder:
        yield folder


def make_store(path: Path) -> None:
    """Packs that are dead, sparse, small and many; one that a killed writer left; a copy."""
    for n in range(4):
        with castore.open(path, **SMALL) as store, store.transaction() as transaction:
            transaction.puts(f"m/{n}", ALIVE[n])
            transaction.puts(f"gone/{n}", GONE[n])
    with castore.open(path, **SMALL) as store:
        store.puts("m/shared", SHARED)
        store.puts("dead", DEAD)
    with castore.open(path, **SMALL) as store:
        store.puts("last", SHARED[:20_000] + some_bytes(5000, 50))
        store.puts("other dead", some_bytes(30_000, 51))
        store.puts("inline", b"1")
        store.copy("last", "z")
        store.rename("z", "zz")
        store.delete_prefix("gone/")
        store.delete("dead")
        store.delete("other dead")
    (path / "packs" / "00").mkdir(exist_ok=True)
    (path / "packs" / "00" / f"{'0' * 32}.pack").write_bytes(b"")


class Scene:
    """A store, what should be in it, and what was begun before the collection."""

    def __init__(self, path: Path) -> None:
        self.store = castore.open(path, create=False, threads=1)
        self.expected = everything(self.store)
        self.file: Any = None
        self.reading: Any = None

    def put_again(self) -> None:
        """Bytes that are dead: the collector may have taken some of them."""
        self._put("again", DEAD + GONE[0] + ALIVE[1])

    def put_and_delete(self) -> None:
        self._put("brief", DEAD)
        self.store.delete("brief")
        del self.expected["brief"]

    def move(self) -> None:
        """To before where the collector reads, and behind."""
        for source, target in (("m/3", "0"), ("m/1", "zzz"), ("zz", "1"), ("m/0", "copy")):
            if target == "copy":
                self.store.copy(source, target)
                self.expected[target] = self.expected[source]
            else:
                self.store.rename(source, target)
                self.expected[target] = self.expected.pop(source)

    def replace(self) -> None:
        self._put("m/shared", b"x" * 5000)
        self.store.delete("last")
        del self.expected["last"]

    def begin_put(self) -> None:
        self.file = self.store.open("staged", "wb")
        self.file.write(BEGUN)

    def end_put(self) -> None:
        """One that has looked up and staged what it had until the collection began."""
        self.go_on_putting()
        self.close_put()

    def go_on_putting(self) -> None:
        """And ends after it."""
        self.file.write(NEW[70_000:])

    def close_put(self) -> None:
        self.file.close()
        self.expected["staged"] = BEGUN + NEW[70_000:]

    def begin_reading(self) -> None:
        self.reading = [self.store.open(name) for name in ("m/0", "m/shared", "last")]

    def read(self) -> None:
        for file in self.reading:
            file.seek(0)
            assert file.read() == self.expected[file.info.name]
        assert everything(self.store) == self.expected

    def collect(self) -> None:
        with pytest.raises(StoreBusy):
            self.store.gc()

    def _put(self, name: str, data: bytes) -> None:
        self.store.puts(name, data)
        self.expected[name] = data


ACTIONS: dict[str, tuple[Callable[[Scene], None] | None, Callable[[Scene], None]]] = {
    "put again": (None, Scene.put_again),
    "put and delete": (None, Scene.put_and_delete),
    "move": (None, Scene.move),
    "replace": (None, Scene.replace),
    "end of a put": (Scene.begin_put, Scene.end_put),
    "amid a put": (Scene.begin_put, Scene.go_on_putting),
    "read": (Scene.begin_reading, Scene.read),
    "collect": (None, Scene.collect),
}


class Moments:
    """Counts the steps of a collection, and calls something at one of them: never within a write
    transaction, where nobody else can do anything, but also within those that read."""

    def __init__(self, patch: pytest.MonkeyPatch, call: Callable[[], None], at: int) -> None:
        self.count, self.at, self.call, self.inside = 0, at, call, True
        for owner, name in (
            (Marker, "begin"), (Marker, "_read_names"), (Marker, "mark"),
            (Marker, "catch_up_outside"), (Marker, "end"), (Sweeper, "sweep_manifests"),
            (Sweeper, "_read_rows"), (Sweeper, "_remove_rows"), (Sweeper, "_put_rows"),
            (Sweeper, "remove_packs"), (PackLocks, "remove"), (Repacker, "choose"),
            (Repacker, "_find_references"), (Repacker, "_wanted"), (Repacker, "_copy"),
            (Repacker, "_move_rows"), (Repacker, "_publish"), (Repacker, "_move"),
        ):  # fmt: skip
            patch.setattr(owner, name, self._around(getattr(owner, name)))
        self._patch_generator(patch)

    def moment(self) -> None:
        if self.inside:
            return
        self.count += 1
        if self.count == self.at:
            self.inside = True
            self.call()
            self.inside = False

    def _around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def around(*args: Any, **options: Any) -> Any:
            self.moment()
            result = real(*args, **options)
            self.moment()
            return result

        return around

    def _patch_generator(self, patch: pytest.MonkeyPatch) -> None:
        real_segments, real_record = Marker.live_segments, Marker._record

        def live_segments(marker: Marker, **options: Any) -> Iterator[Any]:
            for batch in real_segments(marker, **options):
                yield batch
                self.moment()

        reading_names = False
        real_read = Marker._read_names

        def read_names(marker: Marker) -> None:
            nonlocal reading_names
            reading_names = True
            try:
                real_read(marker)
            finally:
                reading_names = False

        def record(marker: Marker, name: bytes, raw: bytes) -> Any:
            if reading_names:
                self.moment()
            return real_record(marker, name, raw)

        patch.setattr(Marker, "live_segments", live_segments)
        patch.setattr(Marker, "_read_names", read_names)
        patch.setattr(Marker, "_record", record)


def small_steps(patch: pytest.MonkeyPatch) -> None:
    small_stages(patch)
    for knob, value in (
        ("local.gc.mark.NAMES_PER_READ", 3),
        ("local.gc.mark.SEGMENTS_PER_READ", 4),
        ("local.gc.mark.CHANGES_PER_READ", 2),
        ("local.gc.sweep.ROWS_PER_READ", 16),
        ("local.gc.sweep.ROWS_MAX", 16),
        ("local.gc.sweep.SEGMENTS_MAX", 5),
        ("local.gc.sweep.PACKS_MAX", 1),
        ("local.gc.repack.SEGMENTS_MAX", 2),
        ("local.gc.repack.ROWS_MAX", 8),
        ("local.gc.repack.FRAMES_MAX", 16),
    ):
        patch.setattr(f"castore.{knob}", value)


def collect_amid(path: Path, action: str, at: int, patch: pytest.MonkeyPatch) -> int:
    """One collection with the action at its moment `at`; how many moments it had."""
    with patch.context() as patched:
        scene = Scene(path)
        with contextlib.closing(scene.store):
            packs = pack_files(scene.store)
            before, act = ACTIONS[action]
            if before is not None:
                before(scene)
            moments = Moments(patched, lambda: act(scene), at)
            moments.inside = False
            scene.store.gc(repack_below=0.9)
            moments.inside = True
            if action == "amid a put":
                scene.close_put()
            if scene.reading:
                scene.read()
            assert everything(scene.store) == scene.expected
            if action in ("end of a put", "amid a put"):
                # A collector may take the row of a chunk that is staged before the segment that
                # leads to it. It is in a pack of that put's.
                assert_rows_complete(scene.store, packs)
            elif action != "put and delete":  # the row of a chunk may outlive its pack by one round
                assert_rows_complete(scene.store)
    with castore.open(path, create=False, threads=1) as store:
        assert everything(store) == scene.expected
        store.gc()
        oracle.check_index(store)
        assert_rows_complete(store)
        assert everything(store) == scene.expected
        assert store.gc().found_nothing
        assert rows(store, "pending") == rows(store, "changes") == {}
        assert not (Path(store.path) / "packs" / "00" / f"{'0' * 32}.pack").exists()
        assert pack_files(store)
    return moments.count


def at_moments(
    folder: Path, action: str, patch: pytest.MonkeyPatch, first: int, stride: int
) -> int:
    """The scenario at every `stride`-th moment; how many were tried."""
    make_store(folder / "made")
    at, last, tried = first, first, 0
    while at <= last:
        path = folder / str(at)
        shutil.copytree(folder / "made", path)
        last = collect_amid(path, action, at, patch)
        shutil.rmtree(path)
        at, tried = at + stride, tried + 1
    assert last > 60
    return tried


@pytest.mark.parametrize("action", ACTIONS)
def test_at_some_moments(fast_folder: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    assert at_moments(fast_folder, action, monkeypatch, 1, 9) > 6


@pytest.mark.deltas
@pytest.mark.parametrize(
    ("action", "stride"), [("put again", 9), ("end of a put", 19), ("move", 19)]
)
def test_at_some_moments_with_deltas(
    fast_folder: Path, monkeypatch: pytest.MonkeyPatch, action: str, stride: int
) -> None:
    assert at_moments(fast_folder, action, monkeypatch, 1, stride) > 3


@pytest.mark.long
@pytest.mark.parametrize("action", ACTIONS)
def test_at_every_moment(fast_folder: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    at_moments(fast_folder, action, monkeypatch, 1, 1)


# ---- what each guard is for ---------------------------------------------------------------------


def raises_gc_seq_never(marker: Marker, txn: Any) -> None:
    marker.catch_up(txn)


def catches_up_never(marker: Marker, txn: Any) -> None:
    next_number(marker._index, txn, GC_SEQ)


def begins_without_marking(marker: Marker) -> None:
    """Nobody is asked for anything."""


ABLATIONS: dict[str, tuple[str, Any, str]] = {
    "commits are not asked to write changes down": (
        "castore.local.gc.mark.Marker.begin", begins_without_marking, "put again",
    ),
    "names that moved are not looked at again": (
        "castore.local.gc.mark.Marker.begin", begins_without_marking, "move",
    ),
    "what changed is not marked before it is taken": (
        "castore.local.gc.mark.Marker.make_decisive", catches_up_never, "put again",
    ),
    "writers are not told to look again": (
        "castore.local.gc.mark.Marker.make_decisive", raises_gc_seq_never, "end of a put",
    ),
    "what live writers staged is not marked": (
        "castore.local.gc.mark.Marker._mark_pending", lambda *_: None, "end of a put",
    ),
    "no writer is taken for alive": (
        "castore.local.locks.PackLocks.is_held", lambda *_: False, "end of a put",
    ),
    "packs go though they were referred to meanwhile": (
        "castore.local.gc.repack.Repacker._is_referred_to", lambda *_: False, "put again",
    ),
    "commits do not look for their packs": (
        "castore.local.catalog.LocalCatalog._apply", "packs", "end of a put",
    ),
}  # fmt: skip


# Moments beside each other show the same: first one of each ten, and so on.
EVERY_MOMENT = [at for first in (1, 6, 4, 9, 2, 7, 3, 8, 5, 10) for at in range(first, 100, 10)]


def apply_without_packs(real: Callable[..., Any]) -> Callable[..., Any]:
    def apply(catalog: Any, txn: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        batch.packs = set()
        return real(catalog, txn, batch, *rest, **options)

    return apply


@pytest.mark.parametrize("guard", ABLATIONS)
def test_each_guard_is_needed(
    fast_folder: Path, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    target, without, action = ABLATIONS[guard]
    if without == "packs":
        without = apply_without_packs(LocalCatalog._apply)
    make_store(fast_folder / "made")
    with monkeypatch.context() as patched:
        patched.setattr(target, without)
        lost: Exception | None = None
        for at in EVERY_MOMENT:
            path = fast_folder / str(at)
            shutil.copytree(fast_folder / "made", path)
            try:
                collect_amid(path, action, at, monkeypatch)
            except (AssertionError, castore.CastoreError, OSError) as error:
                lost = error
                break
    assert lost is not None, f"nothing was lost although {guard}"


def test_a_frame_is_checked_before_it_is_moved(
    fast_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that, a damaged frame comes to lie in a new pack as if it were whole."""
    from collected import damage, first_extents, sparse

    with castore.open(fast_folder / "store", **SMALL) as store:
        old = sparse(store, "a")
        damage(store, first_extents(store, "a/kept")[1].location)
        monkeypatch.setattr("castore.stream.codec.decode_frame", lambda *_: b"")
        report = store.gc()
        assert report.damaged == ()
        assert old.hex() not in pack_files(store), "the evidence is gone"


def test_scenes_fit_what_they_are_for(fast_folder: Path) -> None:
    """The store has all kinds of garbage, and the collection takes steps of all kinds."""
    make_store(fast_folder / "store")
    with castore.open(fast_folder / "store", threads=1) as store:
        report = store.gc(repack_below=0.9)
        assert report.packs_rewritten > 3
        assert report.packs_removed > report.packs_rewritten
        assert report.orphans_removed == 1
        assert report.manifests_removed == 6
        assert os.path.exists(os.path.join(store.path, "castore.gc"))
