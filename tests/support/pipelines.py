"""Pipelines of a new user, run by processes and by the test's own, as a fixture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conducto import command, context
from conducto.nodes import Node
from conducto.run.launch import launch
from conducto.run.options import RunOptions
from conducto.run.records import Records, Run


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def id(self) -> str:
        match = re.search(r"pipeline (\w+)|\"id\": \"(\w+)\"", self.out)
        assert match, self
        return match[1] or match[2]


class Process(subprocess.Popen[str]):
    """One that a test which fails does not wait for."""

    def __exit__(self, raised: type[BaseException] | None, *rest: Any) -> None:
        if raised is not None:
            self.kill()
        super().__exit__(raised, *rest)


class Pipelines:
    """A folder with pipelines' files, and a store for their runs."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def write(self, name: str, text: str) -> Path:
        """A file of the folder. What a pipeline's begins and ends with is added."""
        path = self.folder / name
        if name.endswith(".py") and "import conducto" not in text:
            text = "import conducto as co\n" + textwrap.dedent(text)
            text += '\nif __name__ == "__main__":\n    co.main(default=build)\n'
        path.write_text(text)
        return path

    def begin(self, *argv: str, **env: str) -> Process:
        return Process(
            [sys.executable, *argv],
            cwd=self.folder,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, *argv: str, **env: str) -> Done:
        """`python ARGV` in the folder."""
        with self.begin(*argv, **env) as process:
            out, err = process.communicate(timeout=120)
        return Done(process.returncode, out, err)

    def conducto(self, *argv: str) -> Done:
        """`conducto ARGV`, in this process."""
        self._capsys.readouterr()
        code = command.main(argv)
        context.close_stores()
        return Done(code, *self._capsys.readouterr())

    def run(self, root: Node, *, parallel: int = 2, as_json: bool = False) -> Done:
        """Run the tree by this process."""
        self._capsys.readouterr()
        code = launch(root, ["test"], RunOptions(run=True, parallel=parallel, json=as_json))
        context.close_stores()
        return Done(code, *self._capsys.readouterr())

    def records(self, run_id: str) -> Records:
        return Records(context.open_store(), run_id)

    def log(self, run_id: str, node: str, attempt: int = 1) -> bytes:
        with self.records(run_id).open_log(node, attempt) as file:
            return file.read()

    def load(self, run_id: str) -> Run:
        run = self.records(run_id).load()
        context.close_stores()
        return run

    def states(self, run_id: str) -> dict[str, str]:
        """What `show --json` says of each node."""
        shown = json.loads(self.conducto("show", run_id, "--json").out)
        return {each["node"]: each["state"] for each in shown["nodes"]}

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def pipelines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Pipelines]:
    for variable in [name for name in os.environ if name.startswith("CONDUCTO_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("CONDUCTO_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setenv("CONDUCTO_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield Pipelines(folder, capsys)
    context.close_stores()


def wait_for(found: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """The first that is true."""
    deadline = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.02)
    return value


def command_lines() -> bytes:
    """Those of all processes of this machine, as anybody sees them."""
    if not os.path.isdir("/proc/self"):
        return subprocess.run(["ps", "-axww", "-o", "args"], capture_output=True).stdout
    return b"\n".join(line for _, line in _processes())


def processes_with(word: str) -> list[int]:
    """Of this machine, whose command line has the word."""
    return [number for number, line in _processes() if word.encode() in line.split(b"\0")]


def _processes() -> Iterator[tuple[int, bytes]]:
    """Those of this machine, and their command lines, each word with a NUL behind it."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            yield int(path.parent.name), path.read_bytes()
