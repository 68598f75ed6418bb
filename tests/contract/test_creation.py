"""Making a store is one thing, wherever it is: what no store may have is refused before anything is
written, and where there is none the error is the same."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import Server

import castore
from castore.errors import StoreNotFound

Place = tuple[str, Callable[[], list[str]]]

pytestmark = pytest.mark.usefixtures("quick", "cache_dir")


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a store may be made, and what is there."""
    if request.param == "folder":
        folder = tmp_path / "store"
        return str(folder), lambda: [str(path) for path in folder.rglob("*")]
    server: Server = request.getfixturevalue("moto_server")

    def keys() -> list[str]:
        listed = server.client().list_objects_v2(Bucket=server.bucket)
        return [entry["Key"] for entry in listed.get("Contents", [])]

    return server.url(), keys


@pytest.mark.parametrize(
    "options",
    [
        {"collision_guard": "md5"},
        {"collision_guard": ""},
        {"chunk_bytes_avg": 8 << 20},
        {"chunk_bytes_avg": 65_537},
        {"chunk_bytes_avg": 256},
        {"chunk_bytes_avg": 65_536.0},
        {"chunk_bytes_avg": "65536"},
        {"chunk_bytes_avg": True},
        {"chunk_bytes_avg": -65_536},
    ],
    ids=str,
)
@pytest.mark.sampled(6)
def test_what_no_store_may_have_is_refused(options: dict[str, Any], place: Place) -> None:
    url, there = place
    with pytest.raises(ValueError, match=next(iter(options))):
        castore.open(url, **options)
    assert there() == []
    with castore.open(url, chunk_bytes_avg=2816, collision_guard="sha256") as store:
        store.puts("name", b"x" * 100_000)
    with castore.open(url, create=False) as store:
        assert store.gets("name") == b"x" * 100_000
        assert store.check(read_data=True).problems == []


def test_no_store_there(place: Place) -> None:
    url, there = place
    for open_anew in (
        lambda: castore.open(url, create=False),
        lambda: castore.open(url, read_only=True),
        lambda: castore.check_store(url),
        lambda: castore.rebuild_index(url),
    ):
        with pytest.raises(StoreNotFound, match="no store at") as raised:
            open_anew()
        assert raised.value.errno == errno.ENOENT
    assert there() == []


@pytest.mark.parametrize("prefix", ["/a", "./", "a/../", "../", "ü" * 300])
def test_prefixes_that_no_name_has(prefix: str, place: Place) -> None:
    """S3 answers some of them with an error, and some servers with what is elsewhere."""
    with castore.open(place[0]) as store:
        for name in (".a", "..a/b", "a/..b", "a/b."):
            store.puts(name, b"x")
        assert list(store.names(prefix)) == []
        assert list(store.list(prefix)) == []
        assert list(store.names("a/..")) == ["a/..b"]
        assert sorted(store.names(".")) == ["..a/b", ".a"]
        assert store.check(read_data=True).problems == []
