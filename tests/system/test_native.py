"""The C extension itself: bad arguments are Python errors, and the GIL is let go of."""

from __future__ import annotations

import ast
import errno
import inspect
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_native = pytest.importorskip("castore._native", reason="the C extension isn't built")

SIZES = (704, 1408, 2816)


@pytest.fixture(autouse=True)
def _the_variant_in_use_stays() -> Iterator[None]:
    chosen = _native.variant()
    yield
    _native.select_variant(chosen)


# ---- variants -----------------------------------------------------------------------------------


def test_each_signature_is_that_of_the_stub() -> None:
    """What help() and completion show is what the types say."""
    stub = ast.parse(Path(_native.__file__).with_name("_native.pyi").read_text())
    functions = [(_native, node) for node in stub.body]
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            functions += [(getattr(_native, node.name), each) for each in node.body]
    compared = 0
    for owner, node in functions:
        if (
            isinstance(node, ast.FunctionDef)
            and not node.name.startswith("__")
            and not node.decorator_list  # a property
        ):
            told = inspect.signature(getattr(owner, node.name)).parameters.values()
            typed = [each.arg for each in node.args.posonlyargs + node.args.args]
            assert [each.name for each in told] == typed, node.name
            compared += 1
    assert compared > 15


def test_portable_is_always_there_and_last() -> None:
    assert _native.variants()[-1] == "portable"
    for name in _native.variants():
        _native.select_variant(name)
        assert _native.variant() == name


@pytest.mark.parametrize("name", ["", "sse9", "avx2\0", "PORTABLE"])
def test_an_unknown_variant_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        _native.select_variant(name)
    with pytest.raises(TypeError):
        _native.select_variant(b"avx2")


# ---- bad arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [_native.next_cut, _native.cut_all])
@pytest.mark.parametrize(
    ("start", "sizes"),
    [
        (-1, SIZES),
        (10_001, SIZES),
        (0, (0, 0, 0)),
        (0, (-704, 1408, 2816)),
        (0, (640, 1408, 2816)),
        (0, (705, 1408, 2816)),
        (0, (704, 1409, 2816)),
        (0, (704, 1408, 2817)),
        (0, (1408, 704, 2816)),
        (0, (704, 2816, 1408)),
        (0, (704, 1408, 2**31)),
        (0, (2**62, 2**62, 2**62)),
    ],
)
def test_numbers_out_of_range(
    function: Callable[..., object], start: int, sizes: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match=r"start must|chunk sizes must"):
        function(bytes(10_000), start, True, *sizes)


@pytest.mark.parametrize("function", [_native.next_cut, _native.cut_all])
def test_arguments_of_the_wrong_kind(function: Callable[..., object]) -> None:
    for buffer in ("text", 5, None, [1, 2]):
        with pytest.raises(TypeError):
            function(buffer, 0, True, *SIZES)
    for start in ("0", 1.5, None):
        with pytest.raises(TypeError):
            function(b"", start, True, *SIZES)
    with pytest.raises(OverflowError):
        function(b"", 2**70, True, *SIZES)
    with pytest.raises(TypeError):
        function(b"", 0, True)
    with pytest.raises(TypeError):
        function(b"", 0, True, *SIZES, 1, 2)
    with pytest.raises(BufferError):
        function(memoryview(bytes(8000))[::2], 0, True, *SIZES)


def test_a_refused_call_lets_go_of_the_buffer() -> None:
    data = bytearray(5000)
    for start in (0, -1):
        try:
            _native.cut_all(data, start, True, *SIZES)
            _native.next_cut(data, start, True, *SIZES)
        except ValueError:
            pass
    _native.is_incompressible(data)
    data.append(1)  # BufferError while exported


@pytest.mark.parametrize(
    "make", [bytes, bytearray, memoryview, lambda data: memoryview(data).cast("I")]
)
def test_any_contiguous_buffer(make: Callable[[bytes], object]) -> None:
    data = random.Random(1).randbytes(40_000)
    ends = _native.cut_all(data, 0, True, *SIZES)
    assert _native.cut_all(make(data), 0, True, *SIZES) == ends
    assert _native.next_cut(make(data), 0, True, *SIZES) == ends[0]
    assert _native.is_incompressible(make(data))


def test_next_cut_says_undecided_with_minus_one() -> None:
    assert _native.next_cut(b"", 0, True, *SIZES) == -1
    assert _native.next_cut(bytes(3071), 0, False, *SIZES) == -1
    assert _native.next_cut(bytes(3072), 0, False, *SIZES) == 2816
    assert _native.next_cut(bytes(10), 10, True, *SIZES) == -1


def test_is_incompressible_refuses_what_is_not_bytes() -> None:
    for bad in ("text", None, 3):
        with pytest.raises(TypeError):
            _native.is_incompressible(bad)


# ---- threads ------------------------------------------------------------------------------------


def test_cutting_lets_other_threads_run() -> None:
    data = bytes(1 << 26)
    _native.select_variant("portable")
    done = threading.Event()

    def cut() -> None:
        for _ in range(3):
            _native.cut_all(data, 0, True, 16384, 65536, 262144)
        done.set()

    worker = threading.Thread(target=cut)
    worker.start()
    turns = 0
    while not done.is_set():
        time.sleep(0)
        turns += 1
    worker.join()
    assert turns > 100


def test_many_threads_cut_alike() -> None:
    data = random.Random(2).randbytes(1 << 21)
    expected = _native.cut_all(data, 0, True, *SIZES)
    results: list[list[int]] = []

    def cut() -> None:
        for _ in range(5):
            results.append(_native.cut_all(data, 0, True, *SIZES))

    workers = [threading.Thread(target=cut) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [expected] * 40


# ---- write-back ---------------------------------------------------------------------------------


def test_writeback_of_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.write(bytes(100_000))
        file.flush()
        _native.start_writeback(file.fileno(), 0, 0)
        _native.start_writeback(file.fileno(), 4096, 10_000_000)
        for offset, length in ((-1, 0), (0, -1)):
            with pytest.raises(ValueError, match="negative"):
                _native.start_writeback(file.fileno(), offset, length)
    assert (tmp_path / "file").read_bytes() == bytes(100_000)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="a no-op here")
def test_writeback_of_what_is_not_an_open_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.start_writeback(10_000, 0, 0)
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="Illegal seek"):
            _native.start_writeback(writing, 0, 0)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    "file",
    [
        [b"draft", b"leaf", b"", 0, None],
        (b"draft", b"leaf", b"", 0),
        (b"draft", b"le\0af", b"", 0, None),
        ("draft", b"leaf", b"", 0, None),
        (b"draft", b"leaf", "text", 0, None),
        (b"draft", b"leaf", b"", 0, 1 << 63),
        (b"draft", b"leaf", b"", 0, 1.5),
    ],
)
def test_files_that_cannot_be_are_refused_before_any_is_written(
    tmp_path: Path, file: object
) -> None:
    buffer = bytearray(3)
    fine = (b"draft 0", b"fine", buffer, 0o600, None)
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        _native.write_files(folder, (fine, file))
    with pytest.raises(TypeError):
        _native.write_files(folder, [fine])
    os.close(folder)
    assert os.listdir(tmp_path) == []
    buffer.append(1)  # no buffer is held any more


def test_a_draft_that_is_there_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "draft").symlink_to(tmp_path / "elsewhere")
    folder = os.open(tmp_path, os.O_RDONLY)
    errors = _native.write_files(folder, ((b"draft", b"leaf", b"1", 0o600, None),))
    os.close(folder)
    assert errors == [errno.EEXIST]
    assert os.listdir(tmp_path) == ["draft"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="of Linux")
def test_a_full_disk_is_told_by_its_number(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = os.open(tmp_path, os.O_RDONLY)
    files = tuple((b"draft", name, bytes(size), 0o600, 0) for name, size in [(b"a", 9), (b"b", 11)])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
        errors = _native.write_files(folder, files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
        os.close(folder)
    assert errors == [0, errno.EFBIG]
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("path", ["text", b"n\0ul", 5, None])
def test_paths_that_cannot_be_are_refused(path: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        _native.read_files((b"/none", path), 10)
    with pytest.raises(TypeError):
        _native.read_files([b"/none"], 10)
    with pytest.raises(ValueError):
        _native.read_files((b"/none",), -1)
    with pytest.raises(ValueError):
        _native.read_files((b"/none",) * 5000, 10)
    assert _native.read_files((b"/none",), 10) == [None]
    assert _native.read_files((), 10) == []
    with pytest.raises((TypeError, ValueError)):
        _native.stat_files((b"/none", path))
    with pytest.raises(TypeError):
        _native.stat_files([b"/none"])
    with pytest.raises(ValueError):
        _native.stat_files((b"/none",) * 5000)
    assert _native.stat_files((b"/none", b"/none/below")) == [None] * 2
    assert _native.stat_files(()) == []
