"""A newcomer's walk: every verb of `castore`, as processes of their own, on both kinds of stores.

After each verb a check of all data says that the store is whole, and at the end of it all each kind
of trouble has the exit code that README gives it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from places import ROOT
from servers import Server

from castore import check_store

RANDOM = os.urandom(300_000)
TEXT = b"".join(b"%d all work and no play\n" % i for i in range(20_000))


class Result(NamedTuple):
    code: int
    out: bytes
    err: str


Castore = Callable[..., Result]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the walk starts in, with files in it and no store named."""
    monkeypatch.delenv("CASTORE_STORE", raising=False)
    monkeypatch.delenv("CASTORE_DEBUG", raising=False)
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "cache"))
    place = tmp_path / "place"
    (place / "project/sub").mkdir(parents=True)
    (place / "random").write_bytes(RANDOM)
    (place / "text").write_bytes(TEXT)
    (place / "project/a").write_bytes(b"a")
    (place / "project/sub/text").write_bytes(TEXT[:150_000])
    return place


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.long)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    server: Server = request.getfixturevalue("moto_server")
    return server.url()


@pytest.fixture
def castore(place: Path, url: str) -> Castore:
    def run(*arguments: object, stdin: bytes = b"", on: str = url) -> Result:
        command = [sys.executable, "-m", "castore", "-r", on, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=place, input=stdin, capture_output=True, timeout=120, env=environment
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.mark.long
@pytest.mark.usefixtures("aws_environment")
def test_a_store_is_whole_after_each_verb(castore: Castore, url: str, place: Path) -> None:
    def walk(*verb: object, stdin: bytes = b"", code: int = 0) -> bytes:
        result = castore(*verb, stdin=stdin)
        assert result.code == code, (verb, result)
        assert "Traceback" not in result.err
        checked = check_store(url, read_data=True)
        assert (checked.exit_code, checked.problems) == (0, []), verb
        return result.out

    local = "://" not in url
    walk("put", "random", "data/random")
    walk("put", "text", "random", "data/")
    walk("put", "-", "data/stdin", stdin=TEXT)
    walk("put", "-R", "project", "backups/1")
    walk("import", "project", "backups/2")
    assert walk("ls", "data/").split() == [b"data/random", b"data/stdin", b"data/text"]
    assert walk("cat", "data/random", "--range", "1000:2000") == RANDOM[1000:2000]
    assert walk("cat", "data/stdin") == TEXT
    walk("get", "data/text", "back")
    assert (place / "back").read_bytes() == TEXT
    walk("get", "-R", "backups/1", "back1")
    walk("export", "backups/2", "back2")
    for back in ("back1", "back2"):
        assert (place / back / "sub/text").read_bytes() == TEXT[:150_000]
    assert json.loads(walk("--json", "stat", "data/random"))["size"] == len(RANDOM)
    walk("cp", "data/random", "data/copy")
    walk("mv", "data/copy", "data/moved")
    walk("cp", "-R", "backups/1", "backups/3")
    walk("mv", "-R", "backups/3", "backups/4")
    walk("du", "backups")
    walk("rm", "data/moved", "data/random")
    walk("rm", "-R", "backups/2")
    walk("gc", "-n")
    walk("gc", "--grace", "0s")
    walk("gc", "--grace", "0s")
    names = walk("ls")
    before = json.loads(walk("--json", "stats"))
    assert before["objects"] == len(names.split()) == 6
    walk("check", "--read-data")
    walk("check", "--repair", "--yes")
    walk("put", "random", "data/random")  # what was collected is stored anew
    assert walk("cat", "data/random") == RANDOM
    walk("doctor")
    if local:
        walk("backup", "names.backup")
        shutil.rmtree(Path(url) / "index")
        walk("restore", "names.backup")
    walk("index", "rebuild")
    assert walk("ls").split() == sorted([*names.split(), b"data/random"])
    walk("rm", "-R", "data", "backups")
    walk("gc", "--grace", "0s")
    walk("gc", "--grace", "0s")
    left = json.loads(walk("--json", "stats"))
    assert left["objects"] == left["chunks"] == left["packs"] == left["pack_bytes"] == 0


@pytest.mark.damages_store("a pack is flipped, then gone")
@pytest.mark.usefixtures("aws_environment")
def test_each_trouble_has_its_exit_code(castore: Castore, url: str, tmp_path: Path) -> None:
    assert castore("put", "random", "r").code == 0
    nowhere = url.replace("/store", "/elsewhere")
    for verb in ("ls", "check", "stats", "gc", ("cat", "x"), ("export", "x", "there")):
        words = (verb,) if isinstance(verb, str) else verb
        result = castore(*words, on=nowhere)
        assert result.code == 10, (verb, result)
        assert result.err.count("\n") == 1
    for words in (("cat", "x"), ("rm", "x"), ("ls", "x"), ("du", "x"), ("cp", "x", "y")):
        result = castore(*words)
        assert result.code == 14, (words, result)
        assert "x" in result.err
    for words in (("cat",), ("put",), ("nonsense",), ("ls", "--nonsense"), ("cat", "../x")):
        assert castore(*words).code == 2, words
    assert castore("put", "no-such-file").code == 1
    if "://" not in url:
        [pack] = (path for path in Path(url, "packs").rglob("*") if path.is_file())
        whole = pack.read_bytes()
        pack.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
        for verb in (("check", "--read-data"), ("cat", "r")):
            result = castore(*verb)
            assert result.code == 13, result
        pack.unlink()
        for verb in (("check",), ("cat", "r")):
            assert castore(*verb).code == 14, verb
    else:
        refused = castore("ls", on="s3://no-such-bucket/store" + url[url.index("?") :])
        assert refused.code == 10
        assert "no-such-bucket" in refused.err
