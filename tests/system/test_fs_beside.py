"""castore.fs beside others: what each answer says was true at some moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")

from between import change_after_each_read  # noqa: E402

from castore.fs import CastoreFileSystem  # noqa: E402


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[CastoreFileSystem]:
    fs = CastoreFileSystem(tmp_path / "store", skip_instance_cache=True)
    fs.pipe("x", b"0123456789")
    yield fs
    fs.store.close()


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize(
    "ask",
    [
        lambda fs: fs.exists("x"),
        lambda fs: fs.info("x"),
        lambda fs: fs.ls("x"),
        lambda fs: fs.ls("x", detail=False),
        lambda fs: fs.find("x"),
        lambda fs: fs.find("x", detail=True),
    ],
    ids=["exists", "info", "ls", "names", "find", "infos"],
)
@pytest.mark.parametrize("at_first", ["x", "x/y"])
def test_what_is_moved_into_a_folder_of_its_name_is_there_all_the_time(
    fs: CastoreFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[CastoreFileSystem], object],
    at_first: str,
    after: int,
) -> None:
    if at_first != "x":
        fs.store.rename("x", at_first)
    then = "x/y" if at_first == "x" else "x"
    move = partial(fs.store.rename, at_first, then)
    change_after_each_read(monkeypatch, [lambda: None] * after + [move])
    assert ask(fs)


@pytest.mark.parametrize("after", range(4))
def test_what_is_deleted_meanwhile_is_found_or_not(
    fs: CastoreFileSystem, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    delete = partial(fs.store.delete, "x")
    change_after_each_read(monkeypatch, [lambda: None] * after + [delete])
    assert [*fs.find("x", detail=True)] in ([], ["x"])


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("size", [3, 30])
def test_the_end_of_an_object_is_that_of_one_version(
    fs: CastoreFileSystem, monkeypatch: pytest.MonkeyPatch, size: int, after: int
) -> None:
    newer = bytes(range(65, 65 + size))
    put = partial(fs.store.puts, "x", newer)
    change_after_each_read(monkeypatch, [lambda: None] * after + [put])
    part = fs.cat_file("x", start=-6, end=-1) if after % 2 else fs.cat_file("x", start=-6)
    whole = [data[-6:-1] if after % 2 else data[-6:] for data in (b"0123456789", newer)]
    assert part in whole
    fs.pipe("x", b"0123456789")
    change_after_each_read(monkeypatch, [lambda: None] * after + [put])
    assert fs.cat_ranges(["x"], [-6], [None])[0] in (b"456789", newer[-6:])


@pytest.mark.parametrize("after", range(4))
def test_touch_takes_away_nothing_that_is_put_meanwhile(
    fs: CastoreFileSystem, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    was_put = []

    def put() -> None:
        fs.store.puts("new", b"put meanwhile")
        was_put.append(True)

    change_after_each_read(monkeypatch, [lambda: None] * after + [put])
    fs.touch("new", truncate=False)
    expected = b"put meanwhile" if was_put else b""
    monkeypatch.undo()
    assert fs.cat_file("new") == expected


@pytest.mark.parametrize("name", ["x", "new"])
def test_touch_leaves_what_is_put_before_it_is_done(
    fs: CastoreFileSystem, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begun = fs.open

    def beside(*arguments: Any) -> Any:
        file = begun(*arguments)
        fs.store.puts(name, b"put meanwhile")
        return file

    monkeypatch.setattr(fs, "open", beside)
    fs.touch(name, truncate=False)
    assert fs.cat_file(name) == b"put meanwhile"
