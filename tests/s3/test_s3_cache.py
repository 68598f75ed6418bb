"""What a machine remembers of a store on S3 may go, or go bad, at any moment."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from caches import STORE, noise, settle
from fault_proxy import FaultProxy
from s3_stores import Open
from servers import Server

import castore
from castore.errors import NotAStore
from castore.format.pack import PackEntry
from castore.model import Location
from castore.s3.cache import index as cache
from castore.s3.cache.folder import FolderNotOurs, cache_folder, cache_root, make_own_folder
from castore.s3.cache.store import StoreCache
from castore.s3.client.bucket import Bucket
from castore.stream.codec import chunk_id_of

pytestmark = pytest.mark.usefixtures("cache_dir")


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def fill(one: StoreCache) -> None:
    one.put_manifest(b"name", '"etag"', b"the head", [(10, b"segment 1"), (20, b"segment 2")])
    one.add_chunks([(bytes(16), [PackEntry(bytes([i]) * 16, i, 7, 9) for i in range(5)])])
    one.frames.put([(Location(bytes(16), i, 100), bytes([i]) * 100) for i in range(5)])
    one.note_hints(["hints/00/1"])
    settle(one.frames)


def is_full(one: StoreCache) -> bool:
    """Whether it knows all of it; it knows all or nothing."""
    found = [
        one.manifest_head(b"name") == ('"etag"', b"the head"),
        one.segment(b"name", '"etag"', 20) == b"segment 2",
        one.known([bytes([3]) * 16, b"x" * 16]) == {bytes([3]) * 16: Location(bytes(16), 3, 7)},
        one.frames.get([Location(bytes(16), 4, 100)]) == [bytes([4]) * 100],
        one.hints_seen() == {"hints/00/1"},
    ]
    assert all(found) or not any(found), found
    return all(found)


def reopened(one: StoreCache) -> StoreCache:
    one.close()
    return StoreCache(cache_folder(STORE, "a place"), frames_bytes_max=1 << 20)


# ---------------------------------------------------------------- what it keeps


def test_it_remembers(here: StoreCache) -> None:
    assert not is_full(here)
    fill(here)
    assert is_full(here)
    again = reopened(here)
    assert is_full(again)
    again.forget_manifests([b"name"])
    assert again.manifest_head(b"name") is None
    assert again.segment(b"name", '"etag"', 20) is None
    again.drop_chunks([bytes([3]) * 16])
    assert again.known([bytes([3]) * 16, bytes([4]) * 16]).keys() == {bytes([4]) * 16}
    again.frames.drop(Location(bytes(16), 4, 100))
    assert again.frames.get([Location(bytes(16), 4, 100)]) == [None]
    again.close()


def test_only_the_last_version_is_kept(here: StoreCache) -> None:
    fill(here)
    here.put_manifest(b"name", '"newer"', b"head 2", [(10, b"segment 3")])
    here.put_manifest(b"name", '"etag"', b"", [(10, b"late")])  # of a version that is gone
    assert here.manifest_head(b"name") == ('"newer"', b"head 2")
    assert here.segment(b"name", '"newer"', 10) == b"segment 3"
    for end in (10, 20):
        assert here.segment(b"name", '"etag"', end) is None


def test_folders_and_files_are_for_their_owner(here: StoreCache) -> None:
    fill(here)
    for path in [Path(here.path), *Path(here.path).rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASTORE_CACHE_DIR", "/a/b")
    assert cache_root() == "/a/b"
    assert cache_folder(STORE, "\udcff").startswith("/a/b/")  # a prefix that is not UTF-8
    monkeypatch.delenv("CASTORE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_root() == "/c/castore"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert cache_root() == "/home/x/.cache/castore"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")  # which is not looked for there
    assert cache_root() == "/home/x/Library/Caches/castore"


# ---------------------------------------------------------------- what goes, or goes bad


def test_it_may_be_removed_in_use(here: StoreCache) -> None:
    fill(here)
    os.rename(here.path, here.path + ".away")
    shutil.rmtree(here.path + ".away")
    fill(here)
    is_full(here)
    another = StoreCache(
        cache_folder(STORE, "a place"), frames_bytes_max=1 << 20
    )  # at the same place, anew
    assert not is_full(another)
    another.close()
    assert not is_full(reopened(here))


def damage_nothing(path: Path, size: int) -> None:
    path.unlink()


def damage_with_zeros(path: Path, size: int) -> None:
    path.write_bytes(bytes(size))


def damage_with_noise(path: Path, size: int) -> None:
    path.write_bytes(noise(size))


def damage_into_a_folder(path: Path, size: int) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing,
        damage_with_zeros,
        damage_with_noise,
        damage_into_a_folder,
    ],
)
def test_a_damaged_index_is_dropped(damage: Callable[[Path, int], None], here: StoreCache) -> None:
    fill(here)
    here.close()
    path = Path(here.path) / "index" / "data.mdb"
    damage(path, path.stat().st_size)
    again = StoreCache(cache_folder(STORE, "a place"), frames_bytes_max=1 << 20)
    assert not is_full(again)
    fill(again)
    assert is_full(again)
    again.close()
    assert os.listdir(Path(here.path).parent) == [
        Path(here.path).name
    ]  # nothing is left of the other


def test_rows_are_checked(here: StoreCache) -> None:
    """A wrong place of a chunk would lose data."""
    fill(here)
    index = here._index
    assert index is not None
    for table in (index.names, index.chunks):
        with index.write_gate, index.errors, index.begin() as txn, txn.cursor(db=table) as cursor:
            for key, row in list(cursor):
                for at in range(0, len(row), 5):
                    txn.put(key, row[:at] + bytes([row[at] ^ 4]) + row[at + 1 :], db=table)
                    with_damage = here.manifest_head(b"name"), here.known([bytes(key)])
                    assert None in with_damage or {} in with_damage
    with index.write_gate, index.errors, index.begin() as txn:  # the row of another chunk
        txn.put(bytes([1]) * 16, txn.get(bytes([2]) * 16, db=index.chunks), db=index.chunks)
    assert here.known([bytes([1]) * 16]) == {}


@pytest.mark.parametrize("ended", ["closed", "killed", "used by another"])
def test_a_crash_of_the_machine(
    ended: str, here: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was open at the crash is not used again; what was closed is."""
    fill(here)
    path = here.path
    other = None
    if ended == "closed":
        here.close()
    elif ended == "used by another":
        other = StoreCache(cache_folder(STORE, "a place"), frames_bytes_max=0)
        here.close()
    # As the disk has it: the same boot first.
    copy = path + "-copy"
    shutil.copytree(path, copy)
    if other is not None:
        other.close()
    here.close()
    for boot, kept in ((cache.boot_id(), True), ("another boot", ended == "closed")):
        shutil.rmtree(path)
        shutil.copytree(copy, path)
        monkeypatch.setattr(cache, "boot_id", lambda boot=boot: boot)
        after = StoreCache(cache_folder(STORE, "a place"), frames_bytes_max=1 << 20)
        assert is_full(after) == kept
        fill(after)
        assert is_full(after)
        after.close()


def test_threads_that_meet_trouble_start_over_once(
    here: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(here)
    times = []
    put_away = StoreCache._put_away
    monkeypatch.setattr(StoreCache, "_put_away", lambda self: (times.append(1), put_away(self))[1])
    failed = here._index
    barrier = threading.Barrier(4)

    def trouble(_: object) -> None:
        if here._index is failed:
            barrier.wait()
            raise castore.errors.IndexCorrupt("damaged")

    threads = [threading.Thread(target=here.access, args=(trouble, None)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times == [1]
    assert not is_full(here)
    fill(here)
    assert is_full(here)


def test_after_closing_nothing_is_known(here: StoreCache) -> None:
    fill(here)
    here.close()
    assert not is_full(here)
    fill(here)
    assert not is_full(here)
    again = StoreCache(cache_folder(STORE, "a place"), frames_bytes_max=1 << 20)
    assert is_full(again)  # nor was anything dropped for it
    again.close()


def test_a_full_disk_is_no_reason_to_start_over(
    here: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(here)

    def full(_: object) -> None:
        raise castore.errors.StoreFull("no space left")

    here.access(full, None)
    assert is_full(here)


# ---------------------------------------------------------------- without one


@pytest.mark.parametrize("place", ["a file", "/proc/nothing/here", "read-only"])
def test_a_store_without_a_cache(
    place: str,
    open_moto: Open,
    moto_server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = noise(300_000)
    open_moto(1).puts("a", data)
    root = tmp_path / "root"
    if place == "read-only":
        root.mkdir(mode=0o500)
        if os.access(root, os.W_OK):
            pytest.skip("root may write anywhere")
    elif place == "a file":
        root.write_text("not a folder")
    else:
        root = Path(place)
    url, options = moto_server.url(), {}
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(root))
    with castore.open(url, **options) as store:
        assert store.gets("a", (1000, 2000)) == data[1000:2000]
        store.puts("b", data + b"b")
        store.puts("c", data + b"c")
        assert store.gets("b") == data + b"b"
        assert sorted(store.names()) == ["a", "b", "c"]
    assert open_moto(2).gets("c") == data + b"c"


def test_a_cache_that_can_only_be_read(
    open_moto: Open, moto_server: Server, tmp_path: Path
) -> None:
    data = noise(300_000)
    with open_moto(1) as store:
        store.puts("a", data)
        folder = Path(store._backend._cache.path).parent  # type: ignore[union-attr]
    url = moto_server.url()
    before = {path: path.read_bytes() for path in files_below(folder)}
    (tmp_path / "script").write_text(
        f"""
import castore
with castore.open({url!r}) as store:
    assert len(store.gets("a")) == 300_000
    store.puts("b", bytes(100_000) + b"b")
    assert store.gets("b") == bytes(100_000) + b"b"
    store.puts("a again", store.gets("a"))
"""
    )
    shell = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && echo on && "$@"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", str(folder)]
    done = subprocess.run(
        [*command, sys.executable, str(tmp_path / "script")],
        env={**os.environ, "CASTORE_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    if done.stdout != "on\n":
        pytest.skip(f"no read-only folder can be made here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert before == {path: path.read_bytes() for path in files_below(folder)}
    fresh = open_moto(2)
    assert fresh.gets("a again") == data
    assert fresh.gets("b") == bytes(100_000) + b"b"


# ---------------------------------------------------------------- under a store


def corrupt_segments(store: castore.Store) -> None:
    index = store._backend._cache._index  # type: ignore[union-attr]
    with (
        index.write_gate,
        index.errors,
        index.begin() as txn,
        txn.cursor(db=index.segments) as cursor,
    ):
        for key, row in list(cursor):
            txn.put(key, row[:50] + b"????" + row[54:], db=index.segments)


def corrupt_heads(store: castore.Store) -> None:
    index = store._backend._cache._index  # type: ignore[union-attr]
    with index.write_gate, index.errors, index.begin() as txn, txn.cursor(db=index.names) as cursor:
        for key, row in list(cursor):
            txn.put(key, row[:50] + b"????" + row[54:], db=index.names)


def corrupt_frames(store: castore.Store) -> None:
    settle(store._backend._cache.frames)  # type: ignore[union-attr]
    for path in files_below(Path(store._backend._cache.path) / "frames"):  # type: ignore[union-attr]
        path.write_bytes(b"?" * path.stat().st_size)


def lose_frames(store: castore.Store) -> None:
    settle(store._backend._cache.frames)  # type: ignore[union-attr]
    shutil.rmtree(Path(store._backend._cache.path) / "frames", ignore_errors=True)  # type: ignore[union-attr]


def lose_all(store: castore.Store) -> None:
    shutil.rmtree(store._backend._cache.path, ignore_errors=True)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "damage", [corrupt_segments, corrupt_heads, corrupt_frames, lose_frames, lose_all]
)
def test_reads_fetch_what_is_damaged_again(
    damage: Callable[[castore.Store], None], open_proxied: Open, proxy: FaultProxy
) -> None:
    data = noise(700_000)
    open_proxied(1).puts("a", data)
    warm = open_proxied(2, cache_bytes=0)
    assert warm.gets("a") == data
    for store in (warm, open_proxied(2, cache_bytes=0)):
        damage(store)
        assert store.gets("a") == data
        assert store.gets("a", (5000, 90_000)) == data[5000:90_000]
        with store.open("a") as file:
            assert file.read() == data
    store = open_proxied(2, cache_bytes=0)
    assert store.gets("a") == data
    proxy.clear()
    assert store.gets("a") == data
    assert [exchange.status for exchange in proxy.exchanges] == [304]  # all is cached again


def test_the_segment_of_another_object_is_none(open_moto: Open) -> None:
    """A damaged index may have at a segment's key what it has at that of another, whole as it is.
    Its chunks are what their ids say, so that nothing else would tell."""
    data = {"a": noise(300_000, 1), "b": noise(300_000, 2)}
    with open_moto(1) as store:
        for name in data:
            store.puts(name, data[name])
        index = store._backend._cache._index  # type: ignore[union-attr]
        table = index.segments
        with index.write_gate, index.errors, index.begin() as txn:
            with txn.cursor(db=table) as cursor:
                rows = dict(cursor)
            for key, row in zip(rows, reversed(rows.values()), strict=True):
                txn.put(key, row, db=table)
        assert len(rows) == 2
    with open_moto(1) as store:
        for name in data:
            assert store.gets(name, (5000, 90_000)) == data[name][5000:90_000]
            assert store.gets(name) == data[name]


@pytest.mark.plain("a base is fetched by itself")
def test_damaged_frames_are_fetched_again_at_once(open_proxied: Open, proxy: FaultProxy) -> None:
    data = noise(700_000)
    open_proxied(1).puts("a", data)
    store = open_proxied(2, cache_bytes=0)
    assert store.gets("a") == data
    corrupt_frames(store)
    proxy.clear()
    assert store.gets("a") == data
    assert sorted(exchange.status for exchange in proxy.exchanges) == [206, 304]


READ_SLOWLY_KEPT = """
import sys, time
import castore
from castore.s3.cache import frames

write_all = frames.write_all

def slow(*given):
    time.sleep(0.5)
    return write_all(*given)

frames.write_all = slow
castore.open(sys.argv[1]).gets("a")
print(flush=True)
if sys.argv[2] == "interrupted":
    time.sleep(10)
"""


@pytest.mark.parametrize("end", ["ended", "interrupted"])
@pytest.mark.sampled(4)
def test_what_a_process_fetched_last_is_kept(
    end: str, open_proxied: Open, proxy: FaultProxy, moto_server: Server, cache_dir: Path
) -> None:
    """Also if it closes nothing."""
    data = noise(700_000)
    open_proxied(1).puts("a", data)
    url = Server(proxy.url, moto_server.bucket, preconditions=True).url()
    with subprocess.Popen(
        [sys.executable, "-c", READ_SLOWLY_KEPT, url, end],
        env={**os.environ, "CASTORE_CACHE_DIR": str(cache_dir / "2")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        if end == "interrupted":
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    if end == "interrupted":
        assert (err.splitlines()[-1], process.returncode) == ("KeyboardInterrupt", -signal.SIGINT)
        assert err.count("Traceback") == 1
    else:
        assert (err, process.returncode) == ("", 0)
    store = open_proxied(2)
    proxy.clear()
    assert store.gets("a") == data
    assert [exchange.status for exchange in proxy.exchanges] == [304]


@pytest.mark.parametrize("damage", [corrupt_segments, corrupt_heads, lose_all])
def test_writes_do_without_it(damage: Callable[[castore.Store], None], open_moto: Open) -> None:
    data = noise(700_000)
    store = open_moto(1)
    store.puts("a", data)
    damage(store)
    store.copy("a", "b")
    store.puts("c", data[100_000:] + b"more")
    store.rename("b", "d")
    damage(store)
    fresh = open_moto(2)
    for machine in (store, fresh):
        assert {name: len(machine.gets(name)) for name in machine.names()} == {
            "a": 700_000,
            "c": 600_004,
            "d": 700_000,
        }
        assert machine.gets("d") == data


def test_an_open_file_outlives_the_cache_and_the_store(open_moto: Open) -> None:
    data = noise(700_000)
    open_moto(1).puts("a", data)
    store = open_moto(2, cache_bytes=0)
    path = Path(store._backend._cache.path)  # type: ignore[union-attr]
    file = store.open("a")
    assert file.read(100) == data[:100]
    store.close()
    assert file.read(100_000) == data[100:100_100]
    assert path.exists()  # and it did not take the cache of the others along
    shutil.rmtree(path)
    assert file.read() == data[100_100:]
    file.close()


def test_a_forked_child_reads_what_its_parent_is_fetching(
    open_proxied: Open, proxy: FaultProxy
) -> None:
    data = noise(300_000)
    open_proxied(1).puts("a", data)
    store = open_proxied(2)
    store.info("a")
    held, go = threading.Event(), threading.Event()

    def hold(exchange: object, connection: object) -> None:
        held.set()
        go.wait(20)
        connection.relay(exchange)  # type: ignore[attr-defined]

    proxy.inject("GET", "/packs/", hold)
    thread = threading.Thread(target=store.gets, args=("a",))
    thread.start()
    held.wait(20)
    pid = os.fork()
    if pid == 0:
        # The threads that are fetching are the parent's: the child has to fetch for itself.
        os._exit(0 if store.gets("a") == data else 1)
    assert os.waitpid(pid, 0)[1] == 0
    go.set()
    thread.join()
    assert store.gets("a") == data


def test_a_forked_child_writes_in_a_session_of_its_own(
    open_proxied: Open, proxy: FaultProxy
) -> None:
    store = open_proxied(1)
    store.puts("a", noise(200_000, 1))
    proxy.clear()
    pid = os.fork()
    if pid == 0:
        store.puts("b", noise(200_000, 2))
        store.puts("a again", noise(200_000, 1))
        store.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    sessions = {exchange.key.split("/")[4] for exchange in proxy.matching("PUT", "/pins/")}
    assert len(sessions) == 1
    # It took the parent's pack for another's, and left the parent's pins alone.
    assert proxy.count("HEAD", "/packs/") == 1
    store.puts("c", noise(200_000, 3))
    assert {exchange.key.split("/")[4] for exchange in proxy.matching("PUT", "/pins/")} == sessions
    fresh = open_proxied(3)
    for name, seed in (("a", 1), ("a again", 1), ("b", 2), ("c", 3)):
        assert fresh.gets(name) == noise(200_000, seed)


def test_chunk_ids_depend_on_the_store(open_moto: Open) -> None:
    """A cache is found by the store's id, so that one made anew at the same place has another."""
    store = open_moto(1)
    assert Path(store._backend._cache.path).parent == Path(cache_root() or "")  # type: ignore[union-attr]
    assert chunk_id_of(b"x", 1) != chunk_id_of(b"x", 2)


def test_files_of_a_cache_in_use_are_refused(open_moto: Open, tmp_path: Path) -> None:
    """To open LMDB's files once more in the process would drop its locks on them."""
    store = open_moto()
    store.puts("name", b"x")
    [index] = (Path(os.environ["CASTORE_CACHE_DIR"])).glob("*/index")
    inside = [index / "lock.mdb", index / "data.mdb", index.parent / "frames" / "a"]
    (tmp_path / "link").symlink_to(index.parent, target_is_directory=True)
    for path in [*inside, tmp_path / "link" / "index" / "lock.mdb"]:
        with pytest.raises(NotAStore, match="lies inside the cache of an open store"):
            store.put("other", path)
        with pytest.raises(NotAStore, match="lies inside the cache of an open store"):
            store.get("name", path)
    assert not store.exists("other")
    store.close()
    with castore.open(tmp_path / "store") as local:
        assert local.put("other", index / "lock.mdb").size > 0, "closed: a file like any"


# ---------------------------------------------------------------- whose it is


def test_a_copy_of_the_config_elsewhere_has_a_cache_of_its_own(
    moto_server: Server, open_moto: Open, cache_dir: Path
) -> None:
    """Who may read a store can serve its castore.json, and other bytes under its names."""
    store = open_moto(1)
    store.puts("name", noise(100_000))
    client, bucket = moto_server.client(), moto_server.bucket
    for entry in client.list_objects_v2(Bucket=bucket, Prefix="store/")["Contents"]:
        source = {"Bucket": bucket, "Key": entry["Key"]}
        key = entry["Key"].replace("store/", "elsewhere/", 1)
        client.copy_object(Bucket=bucket, Key=key, CopySource=source)
    with castore.open(moto_server.url("elsewhere")) as other:
        assert other.gets("name") == noise(100_000)
    assert len(list((cache_dir / "1").iterdir())) == 2
    other_store = Server(moto_server.endpoint_url, f"{bucket}-2", True)
    client.create_bucket(Bucket=other_store.bucket)
    paths = {
        cache_folder(STORE, Bucket(settings).place)
        for settings in (
            moto_server.settings(),
            moto_server.settings("elsewhere"),
            other_store.settings(),
            moto_server.settings(endpoint_url="http://localhost:1"),
        )
    }
    assert len(paths) == 4
    assert cache_folder(bytes(16), Bucket(moto_server.settings()).place) not in paths


OTHERS = {
    "another's": lambda path: os.chown(path, 12345, -1),
    "open to all": lambda path: os.chmod(path, 0o777),
    "a link": lambda path: (os.rename(path, f"{path}.real"), os.symlink(f"{path}.real", path)),
}


@pytest.mark.parametrize("how", OTHERS)
@pytest.mark.parametrize("part", ["", "index", "frames", "users", "index/lock.mdb"])
@pytest.mark.sampled(7)
def test_what_others_may_have_put_there_is_not_used(
    part: str, how: str, here: StoreCache, moto_server: Server, open_moto: Open, cache_dir: Path
) -> None:
    store = open_moto(1)
    store.puts("name", noise(100_000))
    assert store.gets("name") == noise(100_000)
    store.close()
    [folder] = (cache_dir / "1").iterdir()
    if how == "another's" and os.geteuid():
        pytest.skip("only root may give files away")
    OTHERS[how](folder / part)
    before = {path: path.lstat() for path in (cache_dir / "1").rglob("*")}
    with pytest.warns(RuntimeWarning, match="nothing is cached"):
        again = open_moto(1)
    again.puts("other", noise(90_000, 1))
    assert again.gets("name") == noise(100_000)
    assert again.gets("other") == noise(90_000, 1)
    again.close()
    after = {path: path.lstat() for path in (cache_dir / "1").rglob("*")}
    assert {p: (s.st_size, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_size, s.st_mtime_ns) for p, s in before.items()
    }


def test_a_root_that_others_may_write_to(cache_dir: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="other users may write"):
        one = StoreCache(str(shared / "0"), frames_bytes_max=1 << 20)
    fill(one)
    assert not is_full(one)
    assert list(shared.iterdir()) == []
    shared.chmod(0o1777)  # as /tmp is
    two = StoreCache(str(shared / "0"), frames_bytes_max=1 << 20)
    fill(two)
    assert is_full(two)
    two.close()
    one.close()


@pytest.mark.parametrize("how", [*OTHERS, "the group", "the others"])
@pytest.mark.parametrize("part", ["", "index", "frames", "users", "index/data.mdb"])
def test_each_part_has_to_be_ours(part: str, how: str, here: StoreCache) -> None:
    fill(here)
    here.close()
    make_own_folder(here.path)
    path = os.path.join(here.path, part) if part else here.path
    if how == "another's" and os.geteuid():
        pytest.skip("only root may give files away")
    if how in OTHERS:
        OTHERS[how](path)
    else:
        os.chmod(path, 0o720 if how == "the group" else 0o702)
    with pytest.raises(FolderNotOurs, match=re.escape(path)):
        make_own_folder(here.path)


def test_a_root_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("only root may give files away")
    root = tmp_path / "root"
    root.mkdir()
    os.chown(root, 12345, -1)
    with pytest.raises(FolderNotOurs, match="root belongs to another user"):
        make_own_folder(str(root / "0"))
    assert list(root.iterdir()) == []
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for owner in (12345, 0):  # the user's own, and the system's, as that of /tmp
        os.chown(root, owner, -1)
        with pytest.raises(FolderNotOurs, match="root/0 belongs to another user"):
            make_own_folder(str(root / "0"))
