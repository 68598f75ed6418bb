"""What all tests share."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import forced_batches
import forced_deltas
import pytest
from hypothesis import HealthCheck, settings

import castore
from castore.s3 import session

MEMORY = "/dev/shm"
MEMORY_BYTES_MIN = 4 << 30  # the tests use a twentieth of it

# Half of the time of the tests is a disk's that syncs, and what a sync is worth no living system
# shows: test_durability and test_lost_writes look at the calls. `TMPDIR=/tmp` has them on a disk.
if (
    "TMPDIR" not in os.environ
    and os.access(MEMORY, os.W_OK)
    and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN
):
    os.environ["TMPDIR"] = MEMORY
    tempfile.tempdir = None  # pytest has asked for it

# The tests start a thousand interpreters, of which each would compile all that it imports, which
# takes four times as long as what it does. In the folders that are imported nothing is written.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).resolve().parents[1] / "build" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or it was `python -B`

# A busy machine is no failure.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

pytest_plugins = [
    "servers",
    "given_server",
    "s3_stores",
    "stores",
    "gc_stores",
    "killed_s3",
    "whole",
    "caches",
    "cli_runs",
    "pipelines",
    "proxied",
    "versions",
    "ways_to_open",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    said = "store every chunk as a delta that can be one: see tests/support/forced_deltas.py"
    parser.addoption("--deltas", action="store_true", help=said)
    said = "put all small objects on S3 into batches: see tests/support/forced_batches.py"
    parser.addoption("--batches", action="store_true", help=said)
    said = "how long processes at a store on S3 are killed at random (one)"
    parser.addoption("--minutes", type=float, default=1.0, help=said)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "deltas: runs as with --deltas")
    config.addinivalue_line("markers", "plain(why): runs as without --deltas")
    config.addinivalue_line("markers", "inline_alone: one object put alone is inline up to 128 KiB")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test that is `sampled(n)`, every n-th runs by default, the others with the
    long tests."""
    seen: Counter[str] = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is not None and item.get_closest_marker("long") is None:
            test = item.nodeid.partition("[")[0]
            if seen[test] % sampled.args[0]:
                item.add_marker(pytest.mark.long)
            seen[test] += 1


@pytest.fixture(autouse=True)
def _small_objects_have_chunks(request: pytest.FixtureRequest) -> Iterator[None]:
    """On S3, from 64 KiB on, whether one is put or many: tests want chunks, and to be quick."""
    if request.node.get_closest_marker("inline_alone"):
        yield
        return
    with mock.patch.object(session, "INLINE_ALONE_BYTES_MAX", session.INLINE_BYTES_MAX):
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Also where whoever began the tests ignores it (`nohup`, a job in the background of a script):
    all that they start would, too."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _no_keys_in_the_users_keyring() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
        yield


@pytest.fixture(autouse=True)
def _deltas(request: pytest.FixtureRequest) -> Iterator[None]:
    marked = request.node.get_closest_marker
    if marked("deltas") or (request.config.getoption("--deltas") and not marked("plain")):
        with forced_deltas.forced():
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _batches(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.config.getoption("--batches"):
        with forced_batches.forced():
            yield
    else:
        yield


@pytest.fixture
def store(tmp_path: Path) -> Iterator[castore.Store]:
    """A new store whose chunks are as small as they come (704 to 11,264 bytes), so that small
    objects have many."""
    with castore.open(tmp_path / "store", chunk_bytes_avg=2816, threads=2) as store:
        yield store


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest) -> Any:
    """A store of each kind."""
    if request.param == "s3":
        return request.getfixturevalue("open_moto")()
    return request.getfixturevalue("store")
