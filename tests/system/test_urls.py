"""What a store's URL or path means, and that no message repeats a secret in one."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

import pytest

import castore
from castore.cli import exits, main
from castore.s3.cache.folder import cache_folder, cache_root
from castore.s3.client.settings import parse_settings
from castore.urls import expand_home, local_folder, redacted

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
KEY = "AKIAIOSFODNN7EXAMPLE"


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("/a/b", "/a/b"),
        ("a b?c#d%20", "a b?c#d%20"),
        ("./s3:x", "./s3:x"),
        ("C:x", "C:x"),
        ("file:///a/b", "/a/b"),
        ("file:/a/b", "/a/b"),
        ("FILE:///a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("file://LOCALHOST/a/b", "/a/b"),
        (Path("/a b/ü%?#").as_uri(), "/a b/ü%?#"),
        ("file:///a%FF", "/a\udcff"),
        ("s3://bucket/prefix", None),
    ],
)
def test_what_it_means(url: str, folder: str | None) -> None:
    assert local_folder(url) == folder


@pytest.mark.parametrize(
    "url",
    [
        "file:",
        "file:x",
        "file://x",
        "file://host/x",
        "file://localhost",
        "file://./x",
        "file://~/x",
        "file:///x?region=eu-west-1",
        "file:///x#y",
        "file:///x%00y",
        "s3:bucket/x",
        "s3:/bucket/x",
        "S3://bucket/x",
        "s3:",
        "gs://bucket/x",
        "~no-such-user-here/x",
    ],
)
def test_what_names_no_store(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"s3://|file:///|write|path"):
        castore.open(url)
    for verb in ("ls", "check", "gc", "stats", "doctor"):
        assert main(["-r", url, verb]) == exits.USAGE
    assert capsys.readouterr().out == ""
    assert os.listdir(tmp_path) == []


def test_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with castore.open("~/store") as store:
        assert store.path == str(tmp_path / "home" / "store")
    with castore.open("./~/store") as store:
        assert store.path == str(tmp_path / "~" / "store")
    assert expand_home("a/~") == "a/~"


@pytest.mark.parametrize("home", ["", "relative", None])
def test_no_home(home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("CASTORE_CACHE_DIR", raising=False)
    if home is None:  # a user whom the system does not know, as in many containers
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("nobody")))
    else:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(ValueError, match="set HOME"):
        castore.open("~/store")
    assert main(["-r", "~/store", "ls"]) == exits.USAGE
    with pytest.warns(RuntimeWarning, match="CASTORE_CACHE_DIR"):
        assert cache_root() is None
    with pytest.warns(RuntimeWarning, match="CASTORE_CACHE_DIR"):
        assert cache_folder(bytes(16), "a place") is None
    assert os.listdir(tmp_path) == []


def test_a_path_that_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff store")
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    assert main(["-r", path, "put", str(tmp_path / "file"), "name"]) == exits.OK
    for verb in (["check", "--read-data"], ["stats"], ["gc"], ["ls"]):
        assert main(["-r", path, *verb]) == exits.OK, capsys.readouterr().err
    assert castore.rebuild_index(path).names == 1
    with castore.open(path) as store:
        assert store.gets("name") == b"x" * 100_000


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY}:{SECRET}@bucket/prefix",
        f"s3://{KEY}:{SECRET}@bucket/pre@fix?region=x",
        f"s3://:{SECRET}@bucket",
        f"s3://{KEY}:{SECRET}/bucket",
        f"s3:{KEY}:{SECRET}@bucket",
        f"s3:/{KEY}:{SECRET}@bucket",
        f"S3://{KEY}:{SECRET}@bucket/prefix",
        f"http://{KEY}:{SECRET}@bucket/prefix",
        f"file://{KEY}:{SECRET}@host/x",
        f"s3://bucket/p?secret={SECRET}",
        f"s3://bucket/p?region=a&region={SECRET}",
        f"s3://bucket/../p?region={SECRET}",
        f"s3://bucket/p?region=a&{SECRET}",
        f"s3://bucket/p?endpoint_url=http://{KEY}:{SECRET}@host:9000",
        f"s3://bucket/p?endpoint_url=http://{KEY}:{SECRET}@host:port",
        f"s3://bucket/p?endpoint_url={KEY}:{SECRET}@host:9000",
        f"s3://bucket/p?endpoint_url=http:/{KEY}:{SECRET}@host",
        f"s3://bucket/p?endpoint_url=http://host/?token={SECRET}",
    ],
)
def test_no_secret_is_repeated(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ValueError) as raised:
        castore.open(url)
    said = ["".join(traceback.format_exception(raised.value)), repr(raised.value)]
    for verb in (["ls"], ["doctor"], ["check"], ["put", "/dev/null", "x"]):
        assert main(["-r", url, *verb]) == exits.USAGE
    monkeypatch.setenv("CASTORE_STORE", url)
    assert main(["--json", "stats"]) == exits.USAGE
    said += [*capsys.readouterr(), caplog.text]
    words = [line for text in said for line in text.splitlines() if "url," not in line]
    for part in (SECRET, *SECRET.split("/")):
        assert not [line for line in words if part in line]
    assert os.listdir(tmp_path) == []


def test_an_endpoint_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{KEY}:{SECRET}@host:9000")
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL holds credentials"):
        parse_settings("s3://bucket/p")


def test_redacted() -> None:
    text = f"no answer from http://{KEY}:{SECRET}@proxy:80/x?sig={SECRET} today"
    assert redacted(text) == "no answer from http://...@proxy:80/x?... today"
    assert redacted("s3://bucket/a@b") == "s3://...@b"
    assert redacted("nothing to hide: a@b") == "nothing to hide: a@b"
