"""What comes out of a local store whose index has a damaged page: all that can be read; the rest is
named."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path

import pytest
from stores import small

import castore
from castore.cli import main
from castore.system.lmdb_pages import LEAF

pytestmark = pytest.mark.apart  # LMDB may die of what these do to its pages

PAGE = 4096
VALUES = {f"n/{i:03}": random.Random(i).randbytes(300 if i % 9 else 6000) for i in range(90)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with small(tmp_path / "store") as store, store.transaction() as transaction:
        for name, value in VALUES.items():
            transaction.puts(name, value)
    return tmp_path / "store"


def damage_page_of(folder: Path, content: bytes) -> None:
    """Make the leaf that has this one that LMDB refuses, and of which nothing can be read."""
    path = folder / "index" / "data.mdb"
    raw = bytearray(path.read_bytes())
    at = max(
        at
        for at in range(2 * PAGE, len(raw), PAGE)
        if struct.unpack_from("<H", raw, at + 10)[0] == LEAF and content in raw[at : at + PAGE]
    )
    struct.pack_into("<HHH", raw, at + 10, 0x10, 0xFFF0, 0x10)
    path.write_bytes(raw)


def files(folder: Path) -> dict[str, bytes]:
    return {os.path.join("n", path.name): path.read_bytes() for path in (folder / "n").iterdir()}


@pytest.mark.damages_store("a page of its index")
def test_all_that_can_be_read_comes_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_page_of(folder, b"n/044")
    before = (folder / "index/data.mdb").read_bytes()
    assert main(["-r", str(folder), "export", "", str(tmp_path / "out")]) == 13
    found = files(tmp_path / "out")
    assert 60 < len(found) < len(VALUES)
    assert found.items() <= VALUES.items()
    err = capsys.readouterr().err
    [lost] = [line for line in err.splitlines() if "lost: names from" in line]
    assert all(f"n/{i:03}" in found for i in range(30))
    missing = sorted(VALUES.keys() - found.keys())
    assert f"from '{missing[0]}' up to 'n/{int(missing[-1][2:]) + 1:03}'" in lost

    assert main(["-r", str(folder), "get", "-R", "--json", "n", str(tmp_path / "got/n")]) == 13
    assert files(tmp_path / "got") == found
    told = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert told == sorted(found)

    for options in ([], ["-l"], ["--json"]):
        assert main(["-r", str(folder), "ls", *options]) == 13
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == len(found)
        assert "lost: names from" in err
    assert (folder / "index/data.mdb").read_bytes() == before
    with castore.open(folder, read_only=True) as store, pytest.raises(castore.errors.IndexCorrupt):
        store.export_folder("", tmp_path / "python")


@pytest.mark.damages_store("a page of its index")
def test_an_object_of_which_the_index_lacks_something_is_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_page_of(folder, b"CSEG")
    assert main(["-r", str(folder), "export", "", str(tmp_path / "out")]) == 13
    found = files(tmp_path / "out")
    missing = VALUES.keys() - found.keys()
    assert found.items() <= VALUES.items()
    assert 1 <= len(missing) <= 10
    err = capsys.readouterr().err
    assert all(f"{name} is left out: " in err for name in missing)


@pytest.mark.damages_store("its index is gone")
@pytest.mark.parametrize("gone", ["index/data.mdb", "index"])
def test_an_index_that_is_gone_is_said_to_be_by_all_verbs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    (folder / gone).rename(tmp_path / "gone")
    out = str(tmp_path / "out")
    for verb in (["ls"], ["ls", "-l"], ["export", "", out], ["get", "-R", "n", out], ["stat", "n"]):
        assert main(["-r", str(folder), *verb]) == 13, verb
        [line] = capsys.readouterr().err.splitlines()
        assert "the index of the store" in line
        assert "is gone: make it anew (castore index rebuild)" in line
