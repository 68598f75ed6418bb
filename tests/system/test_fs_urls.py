"""URLs of `castore://` that say which store they are in."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

fsspec = pytest.importorskip("fsspec")

from fsspec.implementations.local import LocalFileSystem  # noqa: E402
from fsspec.registry import _registry  # noqa: E402

from castore.fs import CastoreFileSystem  # noqa: E402
from castore.fs.links import StoreLink  # noqa: E402
from castore.fs.locations import split_store, url_with_store  # noqa: E402


@pytest.fixture(autouse=True)
def _registered() -> None:
    fsspec.register_implementation("castore", CastoreFileSystem, clobber=True)
    fsspec.register_implementation("castore+s3", StoreLink, clobber=True)


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[CastoreFileSystem]:
    fs = CastoreFileSystem(tmp_path / "a store?#@%2F::", skip_instance_cache=True)
    fs.pipe_file("tables/day", b"12345")
    yield fs
    fs.store.close()


def test_one_plain_url_names_the_store_and_the_object(fs: CastoreFileSystem) -> None:
    url = f"castore://{quote(fs.store_path, safe='')}@/tables/day"
    assert fs.unstrip_protocol("tables/day") == fs.unstrip_protocol(url) == url
    with fsspec.open(url, "rb") as file:
        assert file.read() == b"12345"
    found, path = fsspec.url_to_fs(url)
    assert (found.store_path, path) == (fs.store_path, "tables/day")
    assert found.ls("", detail=False) == ["tables"]
    with fsspec.open(url.replace("day", "night"), "wb") as file:
        file.write(b"1")
    assert fs.cat(["tables/day", url.replace("day", "night")]) == {
        "tables/day": b"12345",
        "tables/night": b"1",
    }
    root, path = fsspec.url_to_fs(url.partition("/tables")[0])
    assert (root.store_path, path) == (fs.store_path, "")


def test_only_an_escaped_slash_before_an_at_sign_is_a_store(fs: CastoreFileSystem) -> None:
    assert split_store("a@/b") == (None, "a@/b")
    assert split_store("%2Fa/b") == (None, "%2Fa/b")
    assert split_store("%2Fdata@/b@/%2Fc") == ("/data", "b@/%2Fc")
    assert split_store("/%2Fdata@/b") == (None, "/%2Fdata@/b")
    fs.pipe_file("%2Fdata@/b", b"odd")
    assert fs.cat_file("castore:///%2Fdata@/b") == b"odd"


@pytest.mark.parametrize("store", ["/a/b", "s3://bucket/p?region=x&endpoint_url=http://h:1"])
def test_the_quoting_rule_goes_both_ways(store: str) -> None:
    url = url_with_store("castore", store, "x/y z?@%")
    assert split_store(url.removeprefix("castore://")) == (store, "x/y z?@%")


def test_a_store_in_the_url_and_another_beside_it(fs: CastoreFileSystem, tmp_path: Path) -> None:
    url = fs.unstrip_protocol("tables/day")
    with fsspec.open(url, store=fs.store_path) as file:
        assert file.read() == b"12345"
    with pytest.raises(TypeError, match="multiple values"):
        fsspec.open(url, store=str(tmp_path / "other"))


class _S3(LocalFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """What fsspec asks of s3fs to take a chain apart."""

    protocol = "s3"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("s3://")


def test_a_chain_may_end_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setitem(_registry, "s3", _S3)
    url = "castore://tables/day::s3://bucket/prefix"
    fs, path = fsspec.url_to_fs(url, s3={"region": "eu-west-1"}, castore={"threads": 1})
    assert (fs.store_path, path) == ("s3://bucket/prefix", "tables/day")
    assert fs.storage_options == {"store": fs.store_path, "region": "eu-west-1", "threads": 1}
    with pytest.raises(TypeError, match=r"no setting anon: .*endpoint_url"):
        fsspec.url_to_fs(url, s3={"anon": True})
    with pytest.raises(ValueError, match="folder takes no settings, and not region"):
        fsspec.url_to_fs("castore://x::file:///s", file={"region": "x"})
    with pytest.raises(ValueError, match="memory"):
        fsspec.url_to_fs("castore://x::memory://s")


def test_a_chain_that_ends_in_a_bucket_needs_no_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = "castore://tables/day::castore+s3://bucket/prefix?region=eu-west-1"
    fs, path = fsspec.url_to_fs(url, castore={"threads": 1})
    assert (fs.store_path, path) == ("s3://bucket/prefix?region=eu-west-1", "tables/day")
    assert fs.storage_options == {"store": fs.store_path, "threads": 1}
    fs, _ = fsspec.url_to_fs(url, **{"castore+s3": {"region": "us-east-2"}})
    assert fs.storage_options["region"] == "us-east-2"
    with pytest.raises(ValueError, match=r"castore://NAME::castore\+s3://"):
        fsspec.url_to_fs("castore+s3://bucket/prefix")


def test_a_pickled_file_system_keeps_the_store_of_its_url(fs: CastoreFileSystem) -> None:
    found, path = fsspec.url_to_fs(fs.unstrip_protocol("tables/day"))
    assert pickle.loads(pickle.dumps(found)).cat_file(path) == b"12345"
    assert os.path.isabs(found.store_path)
