"""Verbs of `castore.fs` on many names on S3: what they ask, and what a failure leaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from asked import requests
from fault_proxy import FaultProxy, answer
from s3_stores import Open

pytest.importorskip("fsspec")

from castore.errors import AccessDenied, NameNotFound
from castore.fs import CastoreFileSystem

pytestmark = pytest.mark.usefixtures("aws_environment")

MANY = 21
TREE = {f"tree/{i % 3}/{i:03}": b"%d" % i * (i + 1) for i in range(MANY)}


@pytest.fixture
def fs(open_proxied: Open, proxy: FaultProxy) -> Any:
    """With a tree in it, of which nothing is known, and nothing counted yet."""
    with open_proxied(1) as filler, filler.transaction() as transaction:
        for name, data in TREE.items():
            transaction.puts(name, data)
    fs = CastoreFileSystem("s3://bucket/store", skip_instance_cache=True)
    fs._store = open_proxied(2)
    proxy.clear()
    return fs


def test_what_is_there(fs: Any, proxy: FaultProxy) -> None:
    assert fs.isdir("tree")
    assert requests(proxy) == ["LIST names"]
    assert fs.ls("", detail=False) == ["tree"]
    assert requests(proxy) == ["LIST names"]
    assert len(fs.find("tree")) == MANY
    assert requests(proxy) == ["LIST names"]
    assert fs.du("tree") == sum(map(len, TREE.values()))
    assert requests(proxy) == ["GET listings", "LIST listings", "LIST names"]
    assert len(fs.ls("tree/1")) == MANY // 3
    assert requests(proxy) == ["LIST names"]
    assert fs.du("tree/1", total=False) == {
        name: len(data) for name, data in TREE.items() if name.startswith("tree/1/")
    }


def test_a_folder_out(fs: Any, proxy: FaultProxy, tmp_path: Path) -> None:
    fs.get("tree", str(tmp_path / "out"), recursive=True)
    assert requests(proxy) == [f"GET names x{MANY}", "LIST names x2"]
    for name, data in TREE.items():
        assert (tmp_path / "out" / name.removeprefix("tree/")).read_bytes() == data
    fs.get("tree/0/*", str(tmp_path / "some") + "/")
    assert sorted(os.listdir(tmp_path / "some")) == [f"{i:03}" for i in range(0, MANY, 3)]
    assert fs.cat("tree", recursive=True) == TREE


def test_a_folder_in(fs: Any, proxy: FaultProxy, tmp_path: Path) -> None:
    for name, data in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    fs.put(str(tmp_path / "tree"), "new", recursive=True)
    assert requests(proxy) == ["LIST names", f"PUT names x{MANY}"]
    fs.pipe({f"piped/{i}": b"1" for i in range(MANY)})
    assert requests(proxy) == [f"PUT names x{MANY}"]
    assert fs.cat("new/0/003") == TREE["tree/0/003"]
    assert len(fs.find("new")) == len(fs.find("piped")) == MANY


def test_a_folder_copied_moved_and_removed(fs: Any, proxy: FaultProxy) -> None:
    fs.cp("tree", "copy", recursive=True)
    # What it is, what the target is, what is in it; and once more when it is published.
    assert requests(proxy) == [f"GET names x{MANY}", "LIST names x4", f"PUT names x{MANY}"]
    fs.mv("copy", "moved", recursive=True)
    assert requests(proxy) == [f"DELETE names x{MANY}", "LIST names x4", f"PUT names x{MANY}"]
    assert [name[6:] for name in fs.find("moved")] == [name[5:] for name in sorted(TREE)]
    proxy.clear()
    fs.rm("moved", recursive=True)
    assert requests(proxy) == ["LIST names x2", "POST delete"]
    fs.rm(sorted(TREE)[1:])
    assert requests(proxy) == ["LIST names", "POST delete"]
    assert fs.find("") == sorted(TREE)[:1]
    proxy.clear()
    fs.rm(sorted(TREE)[0])
    assert requests(proxy) == ["DELETE names", "HEAD names"]


def test_a_name_that_is_missing_is_named_and_nothing_is_removed(fs: Any, proxy: FaultProxy) -> None:
    with pytest.raises(NameNotFound, match="tree/none"):
        fs.rm([*TREE, "tree/none"])
    with pytest.raises(NameNotFound, match="'none'"):
        fs.rm(["tree", "none"], recursive=True)
    with pytest.raises(IsADirectoryError, match="tree/1 is a folder"):
        fs.rm(["tree/1", *TREE])
    with pytest.raises(NameNotFound, match="tree/none"):
        fs.cp([*TREE, "tree/none"], [f"c{name}" for name in [*TREE, "tree/none"]])
    assert not proxy.matching("POST") + proxy.matching("PUT") + proxy.matching("DELETE")
    assert fs.find("") == sorted(TREE)


def test_a_get_that_fails_names_its_path_and_no_file_is_half(
    fs: Any, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.inject("GET", "tree/1/013", answer(403, "AccessDenied"), times=99)
    with pytest.raises(AccessDenied, match="tree/1/013"):
        fs.get("tree", str(tmp_path / "out"), recursive=True)
    written = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert 0 < len(written) < MANY
    assert written.items() <= {name[5:]: data for name, data in TREE.items()}.items()


def test_a_put_that_fails_names_its_path_and_the_last_is_not_there(
    fs: Any, proxy: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    names = [f"{i:03}" for i in range(MANY)]
    for name in names:
        (tmp_path / "new" / name).write_bytes(name.encode())
    proxy.inject("PUT", "new/013", answer(403, "AccessDenied"), times=99)
    for verb in (
        lambda: fs.put(str(tmp_path / "new"), "new", recursive=True),
        lambda: fs.pipe({f"new/{name}": name.encode() for name in names}),
    ):
        with pytest.raises(AccessDenied, match="names/new/013"):
            verb()
        assert fs.find("new") == [f"new/{name}" for name in names[:-1] if name != "013"]
        assert fs.cat("new/012") == b"012"
        fs.rm("new", recursive=True)


def test_a_transaction_is_published_at_its_end(fs: Any, proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with fs.transaction:
        fs.cp("tree", "copy", recursive=True)
        fs.put(str(tmp_path / "x"), "copy/x")
        fs.rm("tree", recursive=True)
        fs.rm("copy/x")  # which no one but this transaction knows of
        assert fs.find("") == sorted(TREE)
        assert not proxy.matching("PUT") + proxy.matching("POST") + proxy.matching("DELETE")
    assert fs.find("") == [f"copy/{name[5:]}" for name in sorted(TREE)]


def test_a_transaction_moves_and_removes_what_was_put_in_it(fs: Any) -> None:
    before = fs.find("")
    with fs.transaction:
        fs.pipe({"a": b"1", "d/b": b"2" * 70_000, "e/c": b"3"})
        fs.mv("a", "moved")
        fs.mv("d", "m", recursive=True)
        fs.rm("e", recursive=True)
        fs.rm("tree/1", recursive=True)
    left = [name for name in before if not name.startswith("tree/1/")]
    assert fs.find("") == sorted([*left, "m/b", "moved"])
    assert fs.cat(["moved", "m/b"]) == {"moved": b"1", "m/b": b"2" * 70_000}
