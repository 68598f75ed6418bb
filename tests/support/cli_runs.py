"""How tests run commands in this process, and what they put."""

from __future__ import annotations

import io
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from castore.cli import main

DATA = random.Random(7).randbytes(300_000)


@dataclass
class Result:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def documents(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def bare(capsysbinary, monkeypatch, tmp_path):
    """Run `castore ARGUMENTS`, in a folder of its own, with no store named."""
    monkeypatch.delenv("CASTORE_STORE", raising=False)
    monkeypatch.delenv("CASTORE_DEBUG", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    return run


@pytest.fixture
def run(bare, tmp_path):
    """Run `castore -r STORE ARGUMENTS`, on a store that holds 'seed'."""
    store = tmp_path / "store"

    def run_on_store(*arguments, stdin: bytes = b"") -> Result:
        return bare("-r", store, *arguments, stdin=stdin)

    assert run_on_store("put", "-", "seed", stdin=b"seed").code == 0
    run_on_store.store = store
    return run_on_store


def names(run, prefix: str = "") -> list[str]:
    return run("ls", prefix).text.splitlines()


def fails(result: Result, code: int, *words: str) -> None:
    """One line on stderr, with all `words` in it, nothing on stdout, and this exit code."""
    assert result.code == code, result
    assert result.out == b""
    assert result.err.startswith("castore: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def make_tree(folder: Path) -> Path:
    (folder / "sub" / "deeper").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "top.txt").write_text("top")
    (folder / ".hidden").write_text("hidden")
    (folder / "sub" / "one").write_bytes(DATA)
    (folder / "sub" / "deeper" / "two").write_text("two")
    return folder
