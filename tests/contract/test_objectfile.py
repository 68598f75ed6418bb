"""Files being written, and the layers around them: what is published, and what is not."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gc
import gzip
import io
import linecache
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import castore
from castore.errors import (
    NameExists,
    NameNotFound,
    ObjectChanged,
    StoreClosed,
    StoreIOError,
    UnpublishedResourceWarning,
)
from castore.objectfile import ObjectWriterFile
from castore.stream.writer import ObjectWriter

Layer = Callable[[ObjectWriterFile], Any]

# What closes the file below it in its own `with`, without a word of what was raised.
CLOSING: dict[str, Layer] = {
    "text": io.TextIOWrapper,
    "buffer": io.BufferedWriter,
    "text on a buffer": lambda file: io.TextIOWrapper(io.BufferedWriter(file)),
}
# What leaves the file below it open.
LEAVING: dict[str, Layer] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file, mode="wb"),
    "bz2": lambda file: bz2.BZ2File(file, "wb"),
    "text on gzip": lambda file: gzip.open(file, "wt"),  # noqa: SIM115
    "zip": lambda file: zipfile.ZipFile(file, "w").open("member", "w"),  # noqa: SIM115
}
LAYERS = {**CLOSING, **LEAVING}


@pytest.fixture(autouse=True)
def whole(store: castore.Store) -> Iterator[None]:
    store.puts("x", b"the old, whole version")
    yield
    store.gc()
    assert store.check(read_data=True).clean


def half(layer: Any) -> Any:
    """Something to write to the layer."""
    return "half" if isinstance(layer, io.TextIOWrapper) else b"half"


@pytest.mark.parametrize("layer", CLOSING)
def test_a_layer_whose_with_raises_publishes_nothing(store: castore.Store, layer: str) -> None:
    with pytest.raises(KeyError), CLOSING[layer](store.open("x", "wb")) as file:  # noqa: PT012
        file.write(half(file))
        raise KeyError
    assert store.gets("x") == b"the old, whole version"
    with CLOSING[layer](store.open("x", "wb")) as file:
        file.write(half(file))
    assert store.gets("x") == b"half"


@pytest.mark.filterwarnings("ignore:unclosed GzipFile:ResourceWarning")  # of Python 3.14
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_is_dropped_warns_and_publishes_nothing(
    store: castore.Store, layer: str
) -> None:
    around = LAYERS[layer](store.open("x", "wb"))
    around.write(half(around))
    with pytest.warns(  # noqa: PT031
        UnpublishedResourceWarning, match="'x' is not published: .*dropped unclosed"
    ):
        del around
        gc.collect()
    assert store.gets("x") == b"the old, whole version"


def test_what_can_not_be_discarded_is_no_error_of_what_comes_next(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandon = ObjectWriter.abandon

    def fails(writer: ObjectWriter) -> None:
        abandon(writer)
        raise StoreIOError("the server is away")

    files = [store.open(name, "wb") for name in ("a", "b")]
    with pytest.warns(UnpublishedResourceWarning):
        files.clear()
    monkeypatch.setattr(ObjectWriter, "abandon", fails)
    with pytest.warns(ResourceWarning, match="what it left stays: the server is away") as said:
        store.puts("next", b"1")
    assert len(said) == 2
    assert store.gets("next") == b"1"


def test_a_file_that_is_given_up_takes_what_a_layer_still_writes(store: castore.Store) -> None:
    file = store.open("x", "wb")
    file.write(b"half")
    file.lose()
    assert (file.write(b"the rest"), file.tell()) == (8, 12)
    file.lose()
    file.close()
    store.puts("next", b"1")
    assert store.gets("x") == b"the old, whole version"


def test_what_a_file_is_called_is_what_its_refusal_tells(store: castore.Store) -> None:
    for mode, error in (("xb", NameExists), ("ab", ObjectChanged)):
        if mode == "xb":
            store.delete("x")
        file = store.open("x", mode)
        file.name = "its name in a folder"
        store.puts("x", mode.encode())
        with pytest.raises(error, match="'its name in a folder'"):
            file.close()


def test_half_a_file_that_is_dropped_after_its_exception_is_not_published(
    store: castore.Store,
) -> None:
    def write_half() -> None:
        text = io.TextIOWrapper(store.open("x", "wb"))
        text.write("half")
        raise KeyError

    with pytest.warns(UnpublishedResourceWarning), contextlib.suppress(KeyError):
        write_half()
    assert store.gets("x") == b"the old, whole version"


def test_a_finally_publishes_nothing_and_says_so(store: castore.Store) -> None:
    file = store.open("x", "wb")

    def fail() -> None:
        try:
            file.write(b"half")
            raise KeyError
        finally:
            file.close()

    with (
        pytest.warns(UnpublishedResourceWarning, match="while KeyError was being handled") as said,
        pytest.raises(KeyError),
    ):
        fail()
    [line] = [warning.lineno for warning in said]
    assert linecache.getline(__file__, line).strip() == "file.close()"
    assert file.closed
    assert store.gets("x") == b"the old, whole version"


def test_a_finally_spoils_no_transaction_of_which_it_closes_a_file(store: castore.Store) -> None:
    with store.transaction() as transaction:
        transaction.puts("before", b"1")
        with pytest.warns(UnpublishedResourceWarning), contextlib.suppress(KeyError):  # noqa: PT031
            file = transaction.open("x")
            try:
                file.write(b"half")
                raise KeyError
            finally:
                file.close()
        transaction.puts("after", b"2")
    assert [store.gets(name) for name in store.names()] == [b"2", b"1", b"the old, whole version"]


class Written:
    """What a file is written to, by who has it alone: `steps` are what others do at that time, in
    threads of their own."""

    def __init__(self) -> None:
        self.raw = b""
        self.published: list[bytes] = []
        self.discarded = 0
        self.before: list[Callable[[], object]] = []
        self.after: list[Callable[[], object]] = []
        self.fails = False

    def write(self, view: memoryview) -> None:
        self.raw += view[:2]
        if self.fails:
            raise OSError(errno.EIO, "the disk failed")
        self.raw += view[2:]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        others_do(self.before)
        try:
            yield
        finally:
            others_do(self.after)

    def file(self) -> ObjectWriterFile:
        def publish(writer: Any) -> castore.ObjectInfo:
            self.published.append(writer.raw)
            return castore.ObjectInfo("x", 0, 0, 0, "", 0, 0)

        def discard(writer: Any) -> None:
            self.discarded += 1

        writer: Any = self
        return ObjectWriterFile("x", writer, publish, discard, exclusively=self.alone)


def others_do(steps: list[Callable[[], object]]) -> None:
    while steps:
        thread = threading.Thread(target=steps.pop())
        thread.start()
        thread.join()


def test_a_thread_that_waits_to_close_a_file_does_not_publish_what_failed() -> None:
    written = Written()
    file = written.file()
    written.fails = True
    written.after.append(file.close)
    with pytest.raises(OSError, match="the disk failed"):
        file.write(b"data")
    assert (written.raw, written.published, written.discarded) == (b"da", [], 1)


def test_what_is_written_to_a_file_that_another_thread_just_closed_is_refused() -> None:
    written = Written()
    file = written.file()
    file.write(b"data")
    written.before.append(file.close)
    with pytest.raises(ValueError, match="closed file"):
        file.write(b"more")
    assert (written.published, written.discarded) == ([b"data"], 0)


def test_who_closes_a_file_lets_who_writes_to_it_come_to_an_end() -> None:
    written = Written()
    file = written.file()
    written.before.append(lambda: written.write(memoryview(b"data")))
    file.close()
    assert written.published == [b"data"]


def test_a_file_that_can_not_be_had_alone_is_closed_all_the_same() -> None:
    """As in a forked child, where nothing can be published."""
    written = Written()
    file = written.file()

    def refuse() -> Any:
        raise StoreClosed("not here")

    file._exclusively = refuse
    with pytest.raises(StoreClosed, match="not here"):
        file.close()
    assert file.closed
    file.close()
    del file  # and nothing is said of it
    assert (written.published, written.discarded) == ([], 0)


def test_what_is_handled_already_does_not_keep_a_file_from_being_published(
    store: castore.Store,
) -> None:
    try:
        raise KeyError
    except KeyError:
        with io.TextIOWrapper(store.open("report", "wb")) as text:
            text.write("a KeyError")
        with contextlib.suppress(ValueError):
            later = store.open("later", "wb")
            raise ValueError from None
        later.close()
        open_still = store.open("open still", "wb")
    open_still.close()
    assert store.gets("report") == b"a KeyError"
    assert list(store.names()) == ["later", "open still", "report", "x"]


def test_what_a_with_does_while_it_is_left_is_published(store: castore.Store) -> None:
    class Reporting:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            with io.TextIOWrapper(store.open("report", "wb")) as text:
                text.write("it failed")

    with pytest.raises(KeyError), Reporting():
        raise KeyError
    assert store.gets("report") == b"it failed"


def test_what_is_raised_again_inside_a_with_publishes_nothing(store: castore.Store) -> None:
    def fail() -> None:
        try:
            raise KeyError
        except KeyError:
            with io.TextIOWrapper(store.open("x", "wb")) as text:
                text.write("half")
                raise

    with pytest.raises(KeyError):
        fail()
    assert store.gets("x") == b"the old, whole version"


def test_an_exit_stack_that_unwinds_publishes_nothing(store: castore.Store) -> None:
    def fail() -> None:
        with contextlib.ExitStack() as stack:
            text = io.TextIOWrapper(store.open("x", "wb"))
            stack.callback(text.close)
            text.write("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.gets("x") == b"the old, whole version"


def test_archives_are_written_to_a_file(store: castore.Store, tmp_path: Path) -> None:
    (tmp_path / "member").write_bytes(b"1" * 10_000)
    for mode in ("w|", "w|gz"):
        with store.open("x", "wb") as file, tarfile.open(fileobj=file, mode=mode) as tar:
            tar.add(tmp_path / "member", "member")
        with store.open("x") as read, tarfile.open(fileobj=read) as tar:
            assert tar.getnames() == ["member"]
    with store.open("x", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("member", b"1")
    with store.open("x") as read:
        assert zipfile.ZipFile(read).read("member") == b"1"


def test_a_drop_is_said_without_being_asked_for(store: castore.Store) -> None:
    code = (
        "import pickle, sys, castore; "
        "pickle.dump([1], castore.open(sys.argv[1]).open('lost', 'wb'))"
    )
    for options, says in (([], True), (["-W", "ignore"], False)):  # who said something decides
        done = subprocess.run(
            [sys.executable, *options, "-c", code, store.path],
            capture_output=True,
            text=True,
            check=True,
        )
        said = "<string>:1: UnpublishedResourceWarning: 'lost' is not published" in done.stderr
        assert said == says, done.stderr
        assert not store.exists("lost")


def test_places_modes_and_likes_that_are_none(any_store: castore.Store) -> None:
    any_store.puts("a", b"abc")
    with any_store.open("a") as file:
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with pytest.raises(ValueError, match="whence must be 0, 1 or 2"):
                file.seek(0, whence)
        assert file.read() == b"abc"
    with pytest.raises(NameNotFound, match="'none'"):
        any_store.open("b", "wb", like="none")
    with (
        any_store.transaction() as transaction,
        pytest.raises(ValueError, match="mode is 'wb', 'x"),
    ):
        transaction.open("b", "rb")
    assert not any_store.exists("b")


def test_what_is_below_the_buffer_of_an_object_is_closed_with_it(any_store: castore.Store) -> None:
    any_store.puts("a", b"abc")
    with any_store.open("a") as file:
        raw = file.raw
        assert raw.seek(2) == raw.tell() == 2
        with pytest.raises(ValueError, match=r"can't seek to -1, before the object's start"):
            raw.seek(-3, os.SEEK_CUR)
        assert raw.readinto(bytearray(5)) == 1
    for read in (raw.readall, lambda: raw.readinto(bytearray(1))):
        with pytest.raises(ValueError, match="closed file"):
            read()


def test_the_mode_of_a_file_that_is_put_may_be_another(
    any_store: castore.Store, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "file").chmod(0o600)
    with any_store.transaction() as transaction:
        for mode in (None, 0o751):
            transaction.put(f"{mode}", tmp_path / "file", mode=mode)
    assert any_store.info("None").mode == 0o600
    assert any_store.info(f"{0o751}").mode == 0o751
