"""Every store that a test leaves is checked when the test has ended, with all data read: a pytest
plugin. `@pytest.mark.damages_store("how")` is for tests that leave one damaged on purpose.

Known are the stores that the test's process opened, and those in its `tmp_path`; on S3, those on
the servers of `servers.py` and `memory_s3.py`. Checked is in this process, when the test's other
fixtures are gone, and with them what they had put in the way of requests, files and time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import driver_places
import pytest
import servers
from memory_s3 import Actor, MemoryAttempts, MemoryS3

import castore
from castore.local.check.run import check_local
from castore.local.folder import CONFIG
from castore.local.store import LocalStore
from castore.s3.store import S3Store
from castore.stream.reports import CheckReport

PACK_BYTES_MAX = 64 << 20  # of larger ones the data is not read, and the report says so
FILES_MAX = 20_000  # looked through for stores; no test has as many by far

_folders: set[str] = set()
_remote: dict[tuple[str, str, int], tuple[str, str, MemoryS3 | None]] = {}


def _note_opened() -> None:
    """From now on every store that is opened is known here."""
    open_local, open_remote = LocalStore.__init__, S3Store.__init__

    def local(self: LocalStore, root: str, *args: Any, **options: Any) -> None:
        _folders.add(root)
        open_local(self, root, *args, **options)

    def remote(self: S3Store, bucket: Any, *args: Any, **options: Any) -> None:
        attempts, settings = bucket._attempts, bucket.settings
        server = attempts._server if isinstance(attempts, MemoryAttempts) else None
        _remote[settings.bucket, settings.prefix, id(server)] = (
            settings.bucket,
            settings.prefix,
            server,
        )
        open_remote(self, bucket, *args, **options)

    LocalStore.__init__ = local  # type: ignore[method-assign, assignment]
    S3Store.__init__ = remote  # type: ignore[method-assign, assignment]


_note_opened()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "damages_store(how): leaves a store that is not whole")


@pytest.fixture(autouse=True)
def _stores_end_whole(request: pytest.FixtureRequest, _deltas: None) -> Iterator[None]:
    """Set up before all others, and so torn down after them; but within what forces deltas, which
    may have made frames that can't be read without it."""
    _folders.clear()
    _remote.clear()
    yield
    if request.node.get_closest_marker("damages_store"):
        return
    if request.node.stash.get(_failed, False):
        return  # it says what is wrong better
    folders = set(_folders)
    if "tmp_path" in (request.node.funcargs or ()):  # None once the run was interrupted
        folders |= set(_stores_below(request.node.funcargs["tmp_path"]))
    with driver_places.Patches() as patches:
        patches.checks_in_process()
        for root in sorted(folders):
            if os.path.exists(os.path.join(root, CONFIG)):
                _judge(root, _check_folder(root, request))
        for bucket, prefix, server in list(_remote.values()):
            if server is None and servers.BUCKETS.get(bucket) in servers.MOTO:
                server = _copied(bucket)
            if server is not None or bucket in servers.BUCKETS:
                _judge(f"s3://{bucket}/{prefix}", _check_remote(bucket, prefix, server))


_failed: pytest.StashKey[bool] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or not report.passed
    return report


def _stores_below(folder: Path) -> Iterator[str]:
    looked_at = 0
    for root, folders, files in os.walk(folder):
        looked_at += len(files)
        assert looked_at < FILES_MAX, f"{folder} has too many files to look for stores in"
        if CONFIG in files:
            folders.clear()
            yield os.path.realpath(root)


def _check_folder(root: str, request: pytest.FixtureRequest) -> CheckReport:
    size = sum(path.stat().st_size for path in Path(root, "packs").rglob("*.pack"))
    fraction = 1.0
    if size > PACK_BYTES_MAX:
        fraction = 0.0
        said = f"of {root} only the structure was checked: it has {size} bytes"
        request.node.add_report_section("teardown", "stores", said)
    return check_local(root, fraction=fraction, threads=1, progress=None)


def _check_remote(bucket: str, prefix: str, server: MemoryS3 | None) -> CheckReport | None:
    """None if there is no store any more."""
    url = f"s3://{bucket}/{prefix}"
    with ExitStack() as opened, driver_places.Patches() as patches:
        cache = tempfile.mkdtemp()
        opened.callback(shutil.rmtree, cache)
        patches.environ("CASTORE_CACHE_DIR", cache)
        if server is not None:
            patches.set(
                "castore.s3.client.bucket:Attempts", lambda s: MemoryAttempts(server, s, _nobody)
            )
        else:
            patches.environ("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
            patches.environ("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
            patches.environ("AWS_DEFAULT_REGION", "us-east-1")
            url += f"?endpoint_url={servers.BUCKETS[bucket]}"
        try:
            store = castore.open(url, create=False, read_only=True, disk_cache_bytes=0)
        except FileNotFoundError:
            return None
        with store:
            return store.check(True)


def _copied(bucket: str) -> MemoryS3:
    """From moto, of which a check takes ten times as long."""
    from moto_s3 import copied

    return copied(bucket)


_nobody = Actor("the check at the end")


def _judge(where: str, report: CheckReport | None) -> None:
    wrong = [p for p in report.problems if p.severity != "warning"] if report else []
    said = "\n".join(f"{p.severity} {p.kind}: {p.what}" for p in wrong)
    assert not wrong, f"the test left {where} in this state:\n{said}"
