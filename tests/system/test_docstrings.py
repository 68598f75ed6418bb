"""The examples in the docstrings of the public API are run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import castore
import conducto
from conducto import context

OPTIONS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
MODULES = {  # and how many of its docstrings have an example
    "castore": 1,
    "castore.errors": 1,
    "castore.fs": 1,
    "castore.fs.arrow": 1,
    "castore.maintenance": 2,
    "castore.objectfile": 2,
    "castore.store": 1,
    "castore.store.names": 12,
    "castore.store.objects": 5,
    "castore.store.reads": 5,
    "castore.store.whole": 6,
    "castore.tables": 1,
    "castore.transaction": 1,
    "castore.transaction.names": 2,
    "castore.transaction.objects": 3,
    "conducto.archive": 1,
    "conducto.context": 1,
    "conducto.data": 8,
    "conducto.data_scope": 1,
    "conducto.fs": 1,
    "conducto.shared.log": 1,
}


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if module == "castore.fs.arrow":
        pytest.importorskip("pyarrow")
    make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("CONDUCTO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONDUCTO_BASE_DIR", str(tmp_path / "conducto"))
    found = doctest.DocTestFinder().find(importlib.import_module(module))
    found = [test for test in found if test.examples]
    assert len(found) == MODULES[module], [test.name for test in found]
    given: dict[str, Any] = {"castore": castore, "co": conducto, "conducto": conducto}
    for test in found:
        with castore.open("store") as store:
            for name in list(store.names()):
                store.delete(name)
            test.globs.update(given, os=os, shutil=shutil, store=store)
            run(test)
    context.close_stores()


def test_help_and_completion_tell_of_all_that_is_public() -> None:
    """Also before any of it was used."""
    program = (
        "import castore, pydoc; print(*dir(castore)); print(pydoc.plaintext.document(castore))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    names, _, text = run.stdout.partition("\n")
    assert set(castore.__all__) - set(names.split()) == set()
    assert "class Store(" in text
    assert "open = open_store(" in text


def make_files(folder: Path) -> None:
    (folder / "monday.sql").write_bytes(b"create table a (b);\n")
    (folder / "project" / "notes").mkdir(parents=True)
    (folder / "project" / "main.py").write_bytes(b"print('hello')\n")
    (folder / "project" / "notes" / "monday").write_bytes(b"all well")


def run(test: doctest.DocTest) -> None:
    said = io.StringIO()
    result = doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.write)
    assert result.failed == 0, said.getvalue()
