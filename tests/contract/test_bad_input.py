"""What is refused, and the message that says so: it names the thing, and what to do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from ways_to_open import WAYS_TO_OPEN, noise

import castore
import conducto as co
from castore.errors import (
    CastoreError,
    FormatError,
    IndexCorrupt,
    InvalidName,
    InvalidRange,
    NameNotFound,
    NotAStore,
    PackMissing,
    StoreNotFound,
    UnsupportedFormat,
)
from castore.maintenance import repair_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks


def says(text: str) -> str:
    """A pattern for exactly this text, at the end."""
    return re.escape(text) + "$"


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "a name must not be empty"),
        ("x" * 481, f"name {'x' * 40!r}... has 481 bytes in UTF-8; the most is 480"),
        ("é" * 241, f"name {'é' * 40!r}... has 482 bytes in UTF-8; the most is 480"),
        ("a\0b", r"name 'a\x00b' has a NUL byte"),
        ("/a", "name '/a' starts with '/': leave that out"),
        ("/", "name '/' starts with '/': leave that out"),
        ("..", "name '..' has a '..' component"),
        ("a/../b", "name 'a/../b' has a '..' component"),
        ("a/..", "name 'a/..' has a '..' component"),
        (".", "name '.' has a '.' component"),
        ("./a", "name './a' has a '.' component"),
        ("a/./b", "name 'a/./b' has a '.' component"),
        ("\ud800", r"name '\ud800' is not valid Unicode: surrogates not allowed"),
        (b"a", "a name is a str, not bytes"),
        (None, "a name is a str, not NoneType"),
        (5, "a name is a str, not int"),
        (["a"], "a name is a str, not list"),
        (Path("a"), f"a name is a str, not {type(Path('a')).__name__}"),
    ],
)
def test_names(store: castore.Store, tmp_path: Path, name: Any, message: str) -> None:
    store.puts("good", b"good")
    for use in (
        lambda: store.puts(name, b""),
        lambda: store.put(name, io.BytesIO()),
        lambda: store.get(name, tmp_path / "target"),
        lambda: store.gets(name),
        lambda: store.gets_many(name, [(0, 1)]),
        lambda: store.explain_range(name),
        lambda: store.info(name),
        lambda: store.size(name),
        lambda: store.exists(name),
        lambda: store.delete(name),
        lambda: store.copy(name, "good"),
        lambda: store.copy("good", name),
        lambda: store.rename(name, "good"),
        lambda: store.rename("good", name),
        lambda: store.open(name),
        lambda: store.open(name, "wb"),
        lambda: store.open(name, "xb"),
    ):
        with pytest.raises(InvalidName, match=says(message)) as caught:
            use()
        assert isinstance(caught.value, ValueError)
    assert {n: store.gets(n) for n in store.names()} == {"good": b"good"}
    assert os.listdir(tmp_path) == ["store"]


@pytest.mark.parametrize("name", ["x" * 480, "é" * 240, "...", "a/...", "a b", "a//b", "a/", "-"])
def test_names_that_are_fine(store: castore.Store, name: str) -> None:
    store.puts(name, b"x")
    assert list(store.names()) == [name]


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (b"a", "a prefix is a str, not bytes"),
        (None, "a prefix is a str, not NoneType"),
        ("a\0b", r"prefix 'a\x00b' has a NUL byte"),
        ("\udcff", r"prefix '\udcff' is not valid Unicode: surrogates not allowed"),
    ],
)
def test_prefixes(store: castore.Store, prefix: Any, message: str) -> None:
    store.puts("good", b"")
    for use in (store.names, store.list, store.delete_prefix):
        with pytest.raises(InvalidName, match=says(message)):
            use(prefix)
    assert store.exists("good")


@pytest.mark.parametrize("folder", [b"a", None, 5, Path("a")])
def test_folders_of_a_store_that_are_no_text(store: castore.Store, folder: Any) -> None:
    """scandir and transfers take a prefix with or without the "/" at its end."""
    message = f"a prefix is a str, not {type(folder).__name__}"
    for use in (
        store.scandir,
        lambda folder: store.export_folder(folder, "out"),
        lambda folder: store.import_folder(".", folder),
    ):
        with pytest.raises(InvalidName, match=says(message)):
            use(folder)


def test_missing_names(store: castore.Store, tmp_path: Path) -> None:
    store.puts("a/b", b"")
    for name in ("a", "missing", "a/b/"):
        for use in (
            lambda name=name: store.get(name, tmp_path / "target"),
            lambda name=name: store.get(name, io.BytesIO()),
            lambda name=name: store.gets(name),
            lambda name=name: store.gets(name, (0, 1)),
            lambda name=name: store.gets_many(name, [(0, 1)]),
            lambda name=name: store.explain_range(name),
            lambda name=name: store.info(name),
            lambda name=name: store.size(name),
            lambda name=name: store.delete(name),
            lambda name=name: store.copy(name, "b"),
            lambda name=name: store.rename(name, "b"),
            lambda name=name: store.open(name),
        ):
            with pytest.raises(NameNotFound, match=r"no object is named|nothing below") as caught:
                use()
            assert isinstance(caught.value, FileNotFoundError)
            assert caught.value.name == name
    assert os.listdir(tmp_path) == ["store"]


# ---------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("byte_range", "message"),
    [
        ((-1, 5), "byte range [-1, 5) is negative"),
        ((0, -1), "byte range [0, -1) is negative"),
        ((-5, -1), "byte range [-5, -1) is negative"),
        ((5, 4), "byte range [5, 4) is reversed: begin must not exceed end"),
        ((10**30, 0), f"byte range [{10**30}, 0) is reversed: begin must not exceed end"),
        ((1, 2, 3), "a byte range is (begin, end), not 3 elements"),
        ((1,), "a byte range is (begin, end), not 1 element"),
        ((0.0, 5), "a byte range takes integers, not [0.0, 5]"),
        ((0, 1e400), "a byte range takes integers, not [0, inf]"),
        (("0", "5"), "a byte range takes integers, not ['0', '5']"),
        ((None, 5), "a byte range takes integers, not [None, 5]"),
        ((0, None), "a byte range takes integers, not [0, None]"),
        (5, "a byte range is (begin, end), not 5"),
        ("05", "a byte range is (begin, end), not '05'"),
        (b"05", "a byte range is (begin, end), not b'05'"),
        (slice(0, 5), "a byte range is (begin, end), not slice(0, 5, None)"),
    ],
)
def test_ranges(store: castore.Store, byte_range: Any, message: str) -> None:
    for size in (0, 10, 50_000):
        store.puts("name", noise(size))
        for use in (
            lambda: store.gets("name", byte_range),
            lambda: store.gets_many("name", [byte_range]),
            lambda: store.gets_many("name", [(0, 1), byte_range]),
            lambda: store.explain_range("name", byte_range),
        ):
            with pytest.raises(InvalidRange, match=says(message)) as caught:
                use()
            assert isinstance(caught.value, ValueError)


def test_a_bad_range_is_refused_before_anything_is_read(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from castore.stream import decoding

    def unused(*_: object) -> None:
        raise AssertionError("a frame was decoded")

    store.puts("name", noise(50_000))
    monkeypatch.setattr(decoding, "decode_frame", unused)
    with pytest.raises(InvalidRange):
        store.gets_many("name", [(0, 10_000), (3, 2)])


# ---------------------------------------------------------------- data and sources


def test_data_that_is_str(store: castore.Store) -> None:
    with pytest.raises(
        TypeError, match=says("data is bytes or another buffer, not str: encode it first")
    ):
        store.puts("name", "text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=says("the file must be opened in binary mode")):
        store.put("name", io.StringIO("text"))  # type: ignore[arg-type]
    with store.open("other", "wb") as file, pytest.raises(TypeError, match="not 'str'"):
        file.write("text")
    assert list(store.names()) == ["other"]
    assert store.gets("other") == b""


@pytest.mark.parametrize("file", [None, 5, b"path", [], object()])
def test_files_that_are_none(store: castore.Store, file: Any) -> None:
    store.puts("empty", b"")
    store.puts("name", b"text")
    what = f"file is a path or a binary file object, not {type(file).__name__}; "
    with pytest.raises(TypeError, match=says(what + "puts takes bytes")):
        store.put("name", file)
    for name in ("name", "empty"):
        with pytest.raises(TypeError, match=says(what + "gets returns bytes")):
            store.get(name, file)
    assert store.gets("name") == b"text"


def test_sources_that_are_not_there(store: castore.Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    refused: list[tuple[Path | str, type[OSError]]] = [
        (tmp_path / "missing", FileNotFoundError),
        (tmp_path / "dangling", FileNotFoundError),
        (tmp_path / "file" / "below", NotADirectoryError),
        (tmp_path, IsADirectoryError),
        (f"{tmp_path}/", IsADirectoryError),
    ]
    for path, error in refused:
        with pytest.raises(error) as caught:
            store.put("name", path)
        assert str(path) in str(caught.value)
        assert not isinstance(caught.value, CastoreError), "the file's fault, not the store's"
    with pytest.raises(FileNotFoundError):
        store.put("name", "")
    with pytest.raises(ValueError, match="embedded null"):
        store.put("name", "a\0b")
    assert list(store.names()) == []


# ---------------------------------------------------------------- where a store can't be


def contents_of(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    for options in WAYS_TO_OPEN:
        with pytest.raises(NotAStore, match=says(f"{path} is a file, not a store's folder")):
            castore.open(path, **options)
        below = f"{path}/below lies below a file, not a store's folder"
        with pytest.raises(NotAStore, match=says(below)):
            castore.open(path / "below", **options)
    assert path.read_bytes() == b"precious"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotAStore):
        castore.open(tmp_path / "fifo")


def test_a_path_that_is_another_programs_lmdb(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    with lmdb.open(str(path), max_dbs=2) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    before = contents_of(path)
    message = (
        f"{path} is an LMDB environment and not a castore store: choose a new or an empty folder"
    )
    with pytest.raises(NotAStore, match=says(message)):
        castore.open(path)
    assert contents_of(path) == before


def test_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"precious")
    before = contents_of(tmp_path)
    message = f"{tmp_path} is not empty and not a castore store: choose a new or an empty folder"
    with pytest.raises(NotAStore, match=says(message)):
        castore.open(tmp_path)
    assert contents_of(tmp_path) == before
    os.unlink(tmp_path / "notes.txt")
    castore.open(tmp_path).close()


def test_a_folder_with_an_index_of_another_program(tmp_path: Path) -> None:
    """Ours is called `index`; so may theirs be."""
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "page.html").write_bytes(b"precious")
    before = contents_of(tmp_path)
    with pytest.raises(NotAStore, match="not a castore store: choose a new or an empty folder"):
        castore.open(tmp_path)
    assert contents_of(tmp_path) == before


def test_settings_of_s3_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no store on S3, which alone has region, sse$"):
        castore.open(tmp_path / "store", region="eu-west-1", sse="AES256")
    assert not (tmp_path / "store").exists()


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    for options in WAYS_TO_OPEN[1:]:
        message = f"there is no store at {path}: check the path, or make one with a put"
        with pytest.raises(StoreNotFound, match=says(message)) as caught:
            castore.open(path, **options)
        assert isinstance(caught.value, FileNotFoundError)
        assert not path.exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreNotFound):
        castore.open(tmp_path / "empty", create=False)
    assert os.listdir(tmp_path / "empty") == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(StoreNotFound, match=says(": check the path") + "$"):  # a put would refuse
        castore.open(tmp_path / "full", create=False)


@pytest.mark.parametrize("verb", [castore.check_store, castore.rebuild_index, repair_config])
def test_options_that_an_unopened_store_has_not(tmp_path: Path, verb: Callable[..., Any]) -> None:
    castore.open(tmp_path / "store").close()
    with pytest.raises(TypeError, match=r"castore\.open has no option threds$"):
        verb(tmp_path / "store", threds=2)
    with pytest.raises(ValueError, match=r"is no store on S3, which alone has region$"):
        verb(tmp_path / "store", region="eu-west-1")
    for options in ({"create": True}, {"read_only": True}, {"create": False, "threads": 2}):
        name = next(iter(options))
        with pytest.raises(TypeError, match=rf"is opened as it has to be: no {name} here"):
            verb(tmp_path / "store", **options)
    verb(tmp_path / "store", threads=2, region=None)


def test_nested_stores(tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    with castore.open(outer) as store:
        store.puts("name", noise(10_000))
        for inner in (
            outer / "inner",
            outer / "packs",
            outer / "packs" / "ab" / "c",
            outer / "index",
        ):
            message = f"{inner} lies inside the store {outer}: stores can't be nested"
            with pytest.raises(NotAStore, match=says(message)):
                castore.open(inner)
        assert not (outer / "inner").exists()
        with pytest.raises(NotAStore, match="not empty and not a castore store"):
            castore.open(tmp_path)
        (tmp_path / "link").symlink_to(outer / "packs")
        with pytest.raises(NotAStore, match="lies inside the store"):
            castore.open(tmp_path / "link")
        assert store.gets("name") == noise(10_000)
    with pytest.raises(NotAStore, match="lies inside the store"):
        castore.open(outer / "inner")


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("", ValueError, "a store's path must not be empty"),
        ("file://", ValueError, "a store's path must not be empty"),
        (b"bytes", TypeError, "a store's path is a str, not bytes"),
        (5, TypeError, "expected str, bytes or os.PathLike object, not int"),
        (None, TypeError, "expected str, bytes or os.PathLike object, not NoneType"),
        ("a\0b", ValueError, "embedded null"),
    ],
)
def test_paths_of_stores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: Any,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=re.escape(message)):
        castore.open(path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", ["gs://bucket/prefix", "http://host/x", "ftp://x", "s4://bucket"])
def test_urls_of_other_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=url.partition("://")[0]):
        castore.open(url)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression_level": 23}, "compression_level is from -7 to 22, not 23"),
        ({"compression_level": -8}, "compression_level is from -7 to 22, not -8"),
        ({"cache_bytes": -1}, "cache_bytes must not be negative"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"collision_guard": "md5"}, "collision_guard is None or 'sha256', not 'md5'"),
        ({"chunk_bytes_avg": 100}, "must be a multiple of 256 bytes and at least 2816, not 100"),
    ],
)
def test_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        castore.open(tmp_path / "store", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("option", ["grace_s", "horizon_s", "max_cost", "max_repack_bytes"])
@pytest.mark.parametrize("wrong", [-1, -0.5, float("nan")])
def test_what_a_collection_is_told(tmp_path: Path, option: str, wrong: float) -> None:
    options: dict[str, Any] = {option: wrong}
    with castore.open(tmp_path / "store") as store, pytest.raises(ValueError, match="negative"):
        store.gc(**options)


# ---------------------------------------------------------------- stores that are damaged, or newer


@pytest.mark.damages_store("castore.json is another")
def test_a_store_of_a_newer_format(root: Path) -> None:
    config = json.loads((root / "castore.json").read_text())
    config |= {"version": 3, "something": "new"}
    (root / "castore.json").write_text(json.dumps(config))
    before = contents_of(root)
    for options in WAYS_TO_OPEN:
        with pytest.raises(
            UnsupportedFormat,
            match="the store has format version 3, this castore reads up to 2: upgrade castore",
        ):
            castore.open(root, **options)
    assert contents_of(root) == before


@pytest.mark.damages_store("castore.json is another")
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\0" * 100, b"\xff", b"[" * 100_000, b"x" * 200_000]
)
def test_a_config_that_does_not_parse(root: Path, content: bytes) -> None:
    (root / "castore.json").write_bytes(content)
    before = contents_of(root)
    with pytest.raises(FormatError, match=re.escape(f"{root}: castore.json")):
        castore.open(root)
    assert contents_of(root) == before, "nothing is made anew over it"


def test_sizes_that_the_chunker_can_not_use(root: Path) -> None:
    good = (root / "castore.json").read_text()
    for old, new in [('"avg": 2816', '"avg": 2817'), ('"min": 704', '"min": 64')]:
        assert old in good
        (root / "castore.json").write_text(good.replace(old, new))
        for _ in range(2):
            with pytest.raises(FormatError, match=re.escape(str(root))):
                castore.open(root)
    (root / "castore.json").write_text(good)
    with castore.open(root) as store:
        assert store.gets("packed") == noise(50_000)
    assert not [fd for fd in os.listdir("/proc/self/fd") if str(root) in link_of(fd)]


def link_of(fd: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}")
    return ""


@pytest.mark.damages_store("the index is gone, or another")
@pytest.mark.parametrize("packs", [True, False])
def test_a_store_without_its_index(root: Path, packs: bool) -> None:
    """It must not open as an empty one."""
    shutil.rmtree(root / "index")
    if not packs:
        shutil.rmtree(root / "packs")
    for options in WAYS_TO_OPEN:
        message = (
            f"the index of the store {root} is gone: make it anew (castore index rebuild), or "
            "restore it from a backup (castore restore)"
        )
        with pytest.raises(IndexCorrupt, match=says(message)):
            castore.open(root, **options)
    assert not (root / "index" / "data.mdb").exists()


@pytest.mark.damages_store("the index is gone, or another")
def test_the_index_of_another_store(root: Path, tmp_path: Path) -> None:
    castore.open(tmp_path / "other").close()
    shutil.rmtree(root / "index")
    shutil.copytree(tmp_path / "other" / "index", root / "index")
    for read_only in (False, True):
        message = f"the index {root}/index belongs to another store"
        with pytest.raises(IndexCorrupt, match=re.escape(message)):
            castore.open(root, read_only=read_only)


@pytest.mark.damages_store("the index is gone, or another")
@pytest.mark.parametrize("content", [b"", b"not LMDB at all" * 1000, bytes(8192)])
def test_an_index_that_is_no_lmdb(root: Path, content: bytes) -> None:
    (root / "index" / "data.mdb").write_bytes(content)
    with pytest.raises(IndexCorrupt, match="restore"):
        castore.open(root)
    assert (root / "index" / "data.mdb").read_bytes()[: len(content)] == content


@pytest.mark.damages_store("the index is gone, or another")
def test_an_index_that_is_somebody_elses_lmdb(root: Path) -> None:
    """An environment without our tables is not an empty store."""
    shutil.rmtree(root / "index")
    (root / "index").mkdir()
    with lmdb.open(str(root / "index")) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    before = (root / "index" / "data.mdb").read_bytes()
    with pytest.raises(IndexCorrupt, match=re.escape(str(root / "index"))):
        castore.open(root)
    assert (root / "index" / "data.mdb").read_bytes() == before


@pytest.mark.damages_store("rows are damaged")
def test_damaged_rows_of_the_index(root: Path) -> None:
    """A record or a segment that does not parse is said to be damaged; the rest can be read, and
    the name replaced or deleted."""
    for table, key in [(b"names", b"packed"), (b"segments", None)]:
        with lmdb.open(str(root / "index"), max_dbs=20) as env:
            database = env.open_db(table, create=False)
            with env.begin(write=True, db=database) as txn, txn.cursor() as cursor:
                assert cursor.set_key(key) if key else cursor.last()
                row = bytearray(cursor.value())
                row[40] ^= 0xFF
                cursor.put(cursor.key(), bytes(row))
        with castore.open(root) as store:
            for use in (store.gets, store.open):
                with pytest.raises(FormatError, match="damaged"):
                    use("packed")
            assert store.gets("inline") == b"inline"
            store.puts("packed", noise(50_000))
            assert store.gets("packed") == noise(50_000)


def test_a_store_that_is_deleted_under_us(root: Path, tmp_path: Path) -> None:
    store = castore.open(root)
    shutil.rmtree(root)
    with pytest.raises((PackMissing, FileNotFoundError)):
        store.gets("packed")
    with pytest.raises((CastoreError, FileNotFoundError)):
        store.puts("new", noise(50_000, 2))
    for change in (
        lambda: store.puts("new", b"inline"),
        lambda: store.delete("inline"),
        lambda: store.rename("inline", "elsewhere"),
    ):
        with pytest.raises((CastoreError, FileNotFoundError)):
            change()
    with pytest.raises(KeyError), store.transaction() as transaction:  # noqa: PT012
        with contextlib.suppress(CastoreError, FileNotFoundError):
            transaction.puts("new", noise(50_000, 3))
        raise KeyError
    store.close()
    assert not [fd for fd in os.listdir("/proc/self/fd") if str(root) in link_of(fd)]
    with pytest.raises(StoreNotFound):
        castore.open(root, create=False)
    shutil.rmtree(root, ignore_errors=True)
    with castore.open(root) as again:
        again.puts("name", noise(50_000))
        assert list(again.names()) == ["name"]


def test_a_transaction_whose_store_is_deleted(root: Path) -> None:
    store = castore.open(root)
    with pytest.raises((CastoreError, FileNotFoundError)), store.transaction() as transaction:  # noqa: PT012
        transaction.puts("new", noise(50_000, 2))
        shutil.rmtree(root)
    store.close()
    assert not [fd for fd in os.listdir("/proc/self/fd") if str(root) in link_of(fd)]


class BytesPath:
    """A path as no store takes one."""

    def __fspath__(self) -> bytes:
        return b"there"


@pytest.mark.parametrize(
    "use",
    [
        lambda store, path: store.put("name", path),
        lambda store, path: store.get("there", path),
        lambda store, path: store.import_folder(path, "p"),
        lambda store, path: store.export_folder("", path),
        lambda store, path: store.backup(path),
        lambda store, path: castore.restore(path, "there"),
        lambda store, path: castore.restore("there", path),
        lambda store, path: castore.rebuild_index(path),
        lambda store, path: castore.check_store(path),
        lambda store, path: castore.open(path),
        lambda store, path: co.data.user.save_cache("deps", "v1", path),
        lambda store, path: co.data.user.restore_cache("there", "v1", path),
    ],
)
def test_paths_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONDUCTO_BASE_DIR", str(tmp_path / "base"))
    (tmp_path / "folder").mkdir()
    co.data.user.save_cache("there", "v1", "folder")
    with castore.open("store") as store:
        store.puts("there", b"")
        with pytest.raises(TypeError, match=r"path is a str, not bytes$"):
            use(store, BytesPath())
    assert sorted(os.listdir()) == ["base", "folder", "store"]
