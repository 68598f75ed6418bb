"""Code that lies in the current folder is not run: castore may be used in /tmp, or in a folder that
somebody else's archive was unpacked to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import castore

# Modules of the standard library, of castore's dependencies, and one that is looked for in vain.
PLANTED = ("random", "tempfile", "json", "lmdb", "xxhash", "zstandard", "sitecustomize")
VERBS = {
    "check": ["check", "--read-data"],
    "backup": ["backup", "names"],
    "index rebuild": ["index", "rebuild"],
}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder of modules each of which says that it was run."""
    folder = tmp_path / "here"
    folder.mkdir()
    for module in PLANTED:
        (folder / f"{module}.py").write_text(
            f"open({str(tmp_path / 'was run')!r}, 'a').write({module!r} + ' ')\n"
            f"raise SystemExit('{module} of the current folder')\n"
        )
    with castore.open(tmp_path / "store") as store:
        store.puts("a", bytes(range(256)) * 100)
    return folder


def run(
    folder: Path, *command: str, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *command],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_command(planted: Path, tmp_path: Path, verb: str) -> None:
    store = str(tmp_path / "store")
    done = run(planted, "-m", "castore", "-r", store, *VERBS[verb], PYTHONSAFEPATH="")
    assert not (tmp_path / "was run").exists(), (tmp_path / "was run").read_text()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["", ".", "{here}"])
def test_a_child_of_a_program_that_was_run_there(planted: Path, tmp_path: Path, path: str) -> None:
    """`python -c` and a prompt have '' in their path, an empty entry of PYTHONPATH is the folder's
    own name. What the program itself needs, it has imported before."""
    program = (
        "import sys; sys.path.remove(''); import lmdb, random; "
        "import castore.local.check.run, castore.store; "
        f"sys.path.insert(0, {path.format(here=planted)!r}); "
        f"print(castore.open({str(tmp_path / 'store')!r}).check(read_data=True).exit_code)"
    )
    done = run(planted, "-c", program, PYTHONSAFEPATH="")
    assert not (tmp_path / "was run").exists(), (tmp_path / "was run").read_text()
    assert done.stdout.strip() == "0", done.stderr


def test_a_castore_that_is_run_from_its_own_folder(tmp_path: Path) -> None:
    """As from a clone, with its dependencies beside it: these are found there."""
    import lmdb
    import xxhash
    import zstandard

    for module in (castore, lmdb, xxhash, zstandard):
        assert module.__file__ is not None
        home = Path(module.__file__).parent
        (tmp_path / home.name).symlink_to(home)
    program = f"import castore; castore.open({str(tmp_path / 'store')!r}).puts('a', b'1')"
    bare = os.path.realpath(sys.executable)  # not that of a virtual environment
    environment = {"python": bare, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": ""}
    assert run(tmp_path, "-c", program, **environment).returncode == 0
    done = run(tmp_path, "-m", "castore", "-r", "store", "check", **environment)
    assert (done.returncode, done.stderr) == (0, ""), done
