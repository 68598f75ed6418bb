"""Mapped files: one contract for both implementations, and what only the extension's does."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from castore.system import mapping
from castore.system.mapping import Mapping, PlainMapping

PAGE = os.sysconf("SC_PAGESIZE")
PAGES = b"".join(bytes([ord("a") + n]) * PAGE for n in range(8))

every_mapping = pytest.mark.parametrize("make", list(dict.fromkeys((Mapping, PlainMapping))))
guarded = pytest.mark.skipif(not Mapping.guarded, reason="the C extension isn't built")
linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pages"
    path.write_bytes(PAGES)
    return path


# ---- the contract -------------------------------------------------------------------------------


@every_mapping
def test_a_whole_file_and_parts_of_it(make: type[Mapping], file: Path) -> None:
    for name in (file, str(file), os.fsencode(file)):
        whole = make(name)
        assert len(whole) == len(PAGES)
        assert bytes(memoryview(whole)) == PAGES
        assert memoryview(whole).readonly
        assert not whole.damaged
        whole.close()
    part = make(file, 5000, offset=2 * PAGE, populate=True)
    assert bytes(memoryview(part)) == PAGES[2 * PAGE : 2 * PAGE + 5000]
    part.close()
    rest = make(file, offset=7 * PAGE)
    assert bytes(memoryview(rest)) == PAGES[7 * PAGE :]
    rest.close()
    assert len(make(file, offset=8 * PAGE)) == 0
    assert len(make(file, 0)) == 0


@every_mapping
def test_a_descriptor_stays_the_callers(make: type[Mapping], file: Path) -> None:
    with open(file, "rb") as opened:
        mapped = make(opened.fileno())
        mapped.close()
        opened.seek(0)
        mapped = make(opened.fileno())
        assert opened.read(1) == b"a"
    assert bytes(memoryview(mapped)) == PAGES
    mapped.close()


@every_mapping
def test_it_sees_what_is_written_to_the_file(make: type[Mapping], file: Path) -> None:
    mapped = make(file)
    with open(file, "r+b") as opened:
        opened.write(b"new")
    assert bytes(memoryview(mapped)[:4]) == b"newa"
    mapped.close()


@every_mapping
def test_an_empty_file(make: type[Mapping], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    mapped = make(tmp_path / "empty")
    assert (len(mapped), bytes(memoryview(mapped)), mapped.damaged) == (0, b"", False)
    mapped.advise_dontneed(0, 100)
    mapped.close()


@every_mapping
def test_close_waits_for_nobody(make: type[Mapping], file: Path) -> None:
    mapped = make(file)
    view = memoryview(mapped)
    with pytest.raises(BufferError):
        mapped.close()
    assert view[0] == ord("a")
    view.release()
    mapped.close()
    mapped.close()
    for use in (memoryview, len):
        with pytest.raises(ValueError, match="closed"):
            use(mapped)
    with pytest.raises(ValueError, match="closed"):
        mapped.advise_dontneed(0, 1)


@every_mapping
def test_a_view_keeps_the_mapping_alive(make: type[Mapping], file: Path) -> None:
    view = memoryview(make(file))
    assert bytes(view) == PAGES


@every_mapping
def test_advice_changes_nothing(make: type[Mapping], file: Path) -> None:
    mapped = make(file)
    view = memoryview(mapped)
    for offset in (0, 1, PAGE, 7 * PAGE + 1, 8 * PAGE, 9 * PAGE):
        for length in (0, 1, PAGE, 2 * PAGE + 5, 2**60):
            mapped.advise_dontneed(offset, length)
    assert bytes(view) == PAGES
    for bad in ((-1, 5), (5, -1)):
        with pytest.raises(ValueError, match="negative"):
            mapped.advise_dontneed(*bad)
    view.release()
    mapped.close()


@every_mapping
def test_requests_that_make_no_sense(make: Callable[..., Mapping], file: Path) -> None:
    for length, offset in ((-2, 0), (1, -PAGE), (1, 5), (8 * PAGE + 1, 0), (-1, 9 * PAGE)):
        with pytest.raises(ValueError):
            make(file, length, offset=offset)
    for bad in (None, 1.5, [file]):
        with pytest.raises(TypeError):
            make(bad)
    with pytest.raises(TypeError):
        make(file, 1, 0)
    with pytest.raises(ValueError):
        make("nul\0inside")
    with pytest.raises((OSError, ValueError)):
        make(-1)


@every_mapping
def test_what_is_not_a_regular_file(make: type[Mapping], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as caught:
        make(missing)
    assert Path(caught.value.filename) == missing
    with pytest.raises(IsADirectoryError):
        make(tmp_path)
    reading, writing = os.pipe()
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        make(reading)
    os.close(reading)
    os.close(writing)


@linux
@every_mapping
def test_nothing_leaks(make: type[Mapping], file: Path) -> None:
    def traces() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count(str(file))
        return maps, len(os.listdir("/proc/self/fd"))

    before = traces()
    for _ in range(2000):
        make(file).close()
        memoryview(make(file)).release()
        with pytest.raises(ValueError):
            make(file, 10**9)
    assert traces() == before


@linux
@guarded
def test_it_holds_no_descriptor(file: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    kept = [Mapping(file) for _ in range(10)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept) == 10


@linux
@guarded
def test_dontneed_lets_go_of_whole_pages_only(file: Path) -> None:
    def resident() -> int:
        smaps = Path("/proc/self/smaps").read_text()
        entry = smaps[smaps.index(str(file)) :]
        return int(entry[entry.index("Rss:") + 4 :].split()[0]) * 1024 // PAGE

    mapped = Mapping(file, populate=True)
    assert resident() == 8
    mapped.advise_dontneed(1, 2 * PAGE)  # all of page 1, parts of 0 and 2
    assert resident() == 7
    mapped.advise_dontneed(6 * PAGE, 2 * PAGE)
    assert resident() == 5


# ---- files that are truncated under the mapping -------------------------------------------------


@guarded
def test_lost_pages_read_as_zeros(file: Path) -> None:
    mapped, sound = Mapping(file), Mapping(file, PAGE)
    os.truncate(file, PAGE)
    assert not mapped.damaged
    assert bytes(memoryview(mapped)) == b"a" * PAGE + bytes(7 * PAGE)
    assert mapped.damaged
    assert not sound.damaged
    assert bytes(memoryview(sound)) == b"a" * PAGE
    mapped.close()
    assert mapped.damaged
    file.write_bytes(PAGES)
    again = Mapping(file)  # its slot in the guard's table may be the damaged one's
    assert bytes(memoryview(again)) == PAGES
    assert not again.damaged


@guarded
def test_a_truncated_file_in_the_midst_of_cutting(file: Path) -> None:
    from castore import _native

    mapped = Mapping(file)
    os.truncate(file, 0)
    assert _native.cut_all(mapped, 0, True, 704, 1408, 2816)[-1] == len(PAGES)
    assert mapped.damaged
    other = Mapping(file, 0)
    assert not other.damaged


@guarded
def test_thousands_of_mappings(file: Path) -> None:
    mappings = [Mapping(file, PAGE, offset=PAGE * (n % 8)) for n in range(5000)]
    os.truncate(file, 7 * PAGE)
    lost = mappings[7::8]
    assert all(memoryview(mapped)[5] == 0 for mapped in lost)
    assert all(memoryview(mapped)[5] != 0 for mapped in set(mappings) - set(lost))
    assert {mapped.damaged for mapped in lost} == {True}
    assert {mapped.damaged for mapped in set(mappings) - set(lost)} == {False}


@guarded
def test_threads_that_map_and_lose_pages(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        path = tmp_path / str(number)
        try:
            for turn in range(200):
                path.write_bytes(PAGES)
                mapped = Mapping(path)
                os.truncate(path, PAGE * (turn % 8))
                kept = PAGES[: PAGE * (turn % 8)]
                assert bytes(memoryview(mapped)) == kept.ljust(len(PAGES), b"\0")
                assert mapped.damaged
                mapped.close()
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


def run(program: str, directory: Path) -> subprocess.CompletedProcess[str]:
    prelude = """
        import faulthandler, importlib, mmap, os, signal, sys
        from castore.system.mapping import Mapping

        def truncated(make):
            with open("pages", "wb") as file:
                file.write(bytes([7]) * 8 * mmap.PAGESIZE)
            mapped = make("pages")
            os.truncate("pages", 0)
            return mapped

        def plain(path):
            with open(path, "rb") as file:
                return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(program)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path(mapping.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@guarded
def test_a_process_of_its_own_survives(tmp_path: Path) -> None:
    done = run("print(bytes(memoryview(truncated(Mapping))[:3]))", tmp_path)
    assert (done.returncode, done.stdout) == (0, "b'\\x00\\x00\\x00'\n")


@guarded
@pytest.mark.parametrize("order", ["before", "after"])
def test_other_bus_errors_go_to_whoever_was_there(order: str, tmp_path: Path) -> None:
    enable = {
        "before": "faulthandler.enable(); Mapping(sys.executable)",
        "after": "Mapping(sys.executable); faulthandler.enable(); Mapping(sys.executable)",
    }[order]
    program = f"""
        {enable}
        assert memoryview(truncated(Mapping))[0] == 0
        print("survived", flush=True)
        memoryview(truncated(plain))[0]
        print("not reached")
    """
    done = run(program, tmp_path)
    assert done.returncode == -signal.SIGBUS
    assert done.stdout == "survived\n"
    assert done.stderr.count("Fatal Python error: Bus error") == 1


@guarded
def test_other_bus_errors_kill_where_nobody_was(tmp_path: Path) -> None:
    done = run("Mapping(sys.executable); memoryview(truncated(plain))[0]", tmp_path)
    assert (done.returncode, done.stderr) == (-signal.SIGBUS, "")


@guarded
def test_a_handler_that_mends_nothing_is_not_called_for_ever(tmp_path: Path) -> None:
    """That of signal.signal only takes a note, and the instruction is tried again."""
    program = """
        signal.signal(signal.SIGBUS, lambda *_: None)
        assert memoryview(truncated(Mapping))[0] == 0
        print("survived", flush=True)
        memoryview(truncated(plain))[0]
    """
    done = run(program, tmp_path)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "survived\n")


@guarded
def test_bus_signals_that_are_sent(tmp_path: Path) -> None:
    send = "Mapping(sys.executable); os.kill(os.getpid(), signal.SIGBUS); print('alive')"
    assert run(send, tmp_path).returncode == -signal.SIGBUS
    ignoring = run("signal.signal(signal.SIGBUS, signal.SIG_IGN);" + send, tmp_path)
    assert (ignoring.returncode, ignoring.stdout) == (0, "alive\n")
    handling = run("signal.signal(signal.SIGBUS, lambda *_: print('caught'));" + send, tmp_path)
    assert (handling.returncode, handling.stdout) == (0, "caught\nalive\n")


@guarded
def test_a_forked_child_is_guarded_too(tmp_path: Path) -> None:
    program = """
        mapped = truncated(Mapping)
        child = os.fork()
        if child == 0:
            assert memoryview(mapped)[0] == 0 and mapped.damaged
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert not mapped.damaged
    """
    assert run(program, tmp_path).stderr == ""


# ---- without the extension ----------------------------------------------------------------------


def test_without_the_extension(tmp_path: Path) -> None:
    program = """
        sys.modules["castore._native"] = None
        del sys.modules["castore.system.mapping"]
        mapping = importlib.import_module("castore.system.mapping")
        assert mapping.Mapping is mapping.PlainMapping and not mapping.Mapping.guarded
        mapping.start_writeback(0, 0, 0)
    """
    assert run(program, tmp_path).stderr == ""
