"""What the layers may import, and which files may do what."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

TESTING = ROOT / "castore" / "testing"  # tests that are shipped, and may do what tests do
SOURCES = sorted(
    path
    for package in ("castore", "conducto")
    for path in (ROOT / package).rglob("*.py")
    if TESTING not in path.parents
)


def files_with(pattern: str) -> set[str]:
    found = re.compile(pattern, re.MULTILINE)
    return {str(path.relative_to(ROOT)) for path in SOURCES if found.search(path.read_text())}


def modules_after(statement: str) -> set[str]:
    """What is loaded once a fresh process has run the statement."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_imports_go_down_only() -> None:
    pytest.importorskip("importlinter")
    lint = (
        "import sys; from importlinter.cli import lint_imports_command as lint; "
        "sys.exit(lint(['--no-cache']))"
    )
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_two_files_import_lmdb() -> None:
    found = files_with(r"^\s*(import|from) lmdb\b")
    assert found == {"castore/system/lmdb_env.py", "castore/system/lmdb_errors.py"}


def test_two_clients_import_boto() -> None:
    found = files_with(r"^\s*(import|from) (boto3|botocore)\b")
    outside = {name for name in found if not name.startswith("castore/s3/client/")}
    assert outside == {"conducto/secrets/ssm.py"}


def test_only_castore_testing_imports_pytest() -> None:
    assert files_with(r"^\s*(import|from) (pytest|hypothesis|castore\.testing)\b") == set()


def test_tests_import_no_test_modules() -> None:
    """What several of them need is in tests/support or castore/testing."""
    found = re.compile(r"^\s*(?:import|from) (test_\w+)", re.MULTILINE)
    modules = [*(ROOT / "tests").rglob("*.py"), *TESTING.rglob("*.py")]
    assert len(modules) > 100
    assert {
        path.name: names for path in modules if (names := found.findall(path.read_text()))
    } == {}


def test_threads_are_started_in_three_files_at_most() -> None:
    found = files_with(r"\b(Thread|Timer|ThreadPoolExecutor|ThreadPool|start_new_thread)\(")
    assert "castore/system/workers.py" in found
    mounts = {"castore/mount/fuse.py", "castore/mount/process.py"}  # what no store waits for
    assert len({name for name in found - mounts if name.startswith("castore/")}) <= 3, found
    runs = {
        f"conducto/run/{name}.py" for name in ("runner", "recorder", "cluster", "worker", "guard")
    }
    assert {name for name in found if name.startswith("conducto/")} <= runs


def test_bytes_of_a_local_store_are_laid_out_in_one_package() -> None:
    found = files_with(r"^\s*(import|from) struct\b")
    # The words of what C does faster; a container, pages and a lock of other programs' making.
    found -= {"castore/stream/chunker_reference.py", "castore/stream/anchors.py"}
    found -= {"conducto/stored_gzip.py"}
    found -= {"castore/system/lmdb_pages.py", "castore/system/lmdb_files.py"}
    local = {name for name in found if not re.match(r"castore/(s3/|format/s3)", name)}
    parts = ("frame", "pack", "segment", "index", "journal", "backup")
    assert local == {f"castore/format/{part}.py" for part in parts}


def test_nothing_is_unpickled_but_by_pickle_itself() -> None:
    assert files_with(r"\bpickle\.loads?\(|\bmarshal\.loads?\(|\beval\(|\bexec\(") == set()


def test_importing_castore_is_cheap() -> None:
    loaded = modules_after("import castore")
    assert "castore" in loaded
    heavy = {"lmdb", "boto3", "botocore", "zstandard", "xxhash", "numpy", "fsspec"}
    heavy |= {"castore._native", "castore.store", "hashlib", "concurrent.futures", "asyncio"}
    assert not loaded & heavy


def test_the_command_does_not_wait_for_what_it_does_not_need() -> None:
    """dataclasses loads inspect and ast: a seventh of what a short command takes."""
    loaded = modules_after("import castore.store, castore.cli.put, castore.cli.get")
    if sys.version_info >= (3, 14):
        loaded -= {"ast"}  # which every NamedTuple loads there
    assert not loaded & {"dataclasses", "inspect", "ast", "subprocess", "selectors"}


def test_a_local_store_needs_no_boto(tmp_path: Path) -> None:
    loaded = modules_after(
        f"import castore\nwith castore.open({str(tmp_path / 'store')!r}) as store:\n"
        "    store.puts('name', bytes(10000)); store.gets('name')"
    )
    assert {"lmdb", "zstandard", "xxhash"} <= loaded
    assert not loaded & {"boto3", "botocore", "numpy", "fsspec", "urllib3", "asyncio"}


def test_castore_does_not_know_conducto() -> None:
    assert not [name for name in files_with(r"\bconducto\b") if name.startswith("castore/")]


def test_the_public_names_are_there() -> None:
    import castore

    for name in castore.__all__:
        assert getattr(castore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = castore.nothing


def test_no_lock_is_hidden_in_what_a_put_uses() -> None:
    """cached_property has one before Python 3.12, of the class: a fork while another thread is in
    it leaves it taken in the child for good. A repair is no part of a put."""
    assert files_with(r"\bcached_property\b.*import|import .*\bcached_property\b") <= {
        "castore/s3/check/outcome.py"
    }


def test_conducto_uses_what_castore_exports() -> None:
    """As any other naming layer could: what docs/versions.md calls public; and the lock that
    makes up for Python 3.14's `with`, which is not to be there twice."""
    import castore

    exported = set(castore.__all__)
    public = {
        "castore": exported,
        "castore.fs": {"CastoreFileSystem"},
        "castore.fs.upath": {"CastorePath"},
        "castore.system.locks": {"Lock"},
        "castore.mount": set(importlib.import_module("castore.mount").__all__),
    }
    used = 0
    for path in (ROOT / "conducto").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ImportFrom(module=str(module)) if module.split(".")[0] == "castore":
                    names = {alias.name for alias in node.names}
                    known = names if module == "castore.errors" else public.get(module, set())
                    assert names <= known, f"{path.name}: {module}: {names - known}"
                    used += 1
                case ast.Import(names=aliases):
                    modules = {alias.name for alias in aliases}
                    assert not any(name.startswith("castore.") for name in modules), path.name
                case ast.Attribute(value=ast.Name(id="castore"), attr=name) if name != "__file__":
                    assert name in exported, f"{path.name}: castore.{name}"
                    used += 1
    assert used > 10


def test_importing_conducto_is_cheap() -> None:
    heavy = {"cryptography", "keyring", "boto3", "botocore", "lmdb", "zstandard", "html", "json"}
    assert not modules_after("import conducto") & heavy
    # Nor does who has no secrets wait for what would decrypt them.
    none = "import os, conducto.secrets as s; os.environ['CONDUCTO_BASE_DIR'] = '/nowhere'"
    loaded = modules_after(
        f"{none}; s.Masker(['x']); assert s.for_nodes(local=True).environment == {{}}"
    )
    assert not loaded & {"cryptography", "keyring", "boto3", "lmdb"}


def test_help_of_conducto_loads_no_store() -> None:
    loaded = modules_after(
        "from conducto.command import main\n"
        "sys.argv[1:] = ['--help']\ntry: main()\nexcept SystemExit: pass"
    )
    assert "conducto.data" in loaded
    assert not loaded & {"lmdb", "boto3", "zstandard", "xxhash", "castore.store"}


def test_one_file_has_the_keys_of_s3() -> None:
    prefixes = "names|packs|pins|hints|samples|index|gc|damaged|quarantine|probe"
    found = files_with(rf'"({prefixes})/("|\{{)|"castore\.json"')
    assert {name for name in found if name.startswith("castore/s3/")} == {"castore/s3/keys.py"}
