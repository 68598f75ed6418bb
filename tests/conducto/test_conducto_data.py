"""The contract of `conducto.data`, row by row. Every test that takes `mode` must hold in each."""

from __future__ import annotations

import array
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from between import change_after_each_read

import castore
import conducto as co
from castore import errors
from conducto import context
from conducto.errors import CacheNotFound, InvalidContext

pytest_plugins = ["modes"]

cloud_only = pytest.mark.parametrize("mode", ["cloud"], indirect=True)


local_only = pytest.mark.parametrize("mode", ["local"], indirect=True)

SCOPES = {"pipeline": co.data.pipeline, "user": co.data.user}


# They differ in what stands before the names: in the cloud one is enough, and the tests of caches
# and of commands have the other.
scopes = pytest.mark.parametrize(
    ("mode", "scope"),
    [("local", "pipeline"), ("local", "user"), ("cloud", "pipeline")],
    indirect=True,
)


@pytest.fixture
def scope(request: pytest.FixtureRequest, mode: str) -> type[co.data._Data]:
    return SCOPES[request.param]


Scope = type[co.data._Data]


@pytest.fixture
def none_yet(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No store is there, in the cloud that of another identity."""
    monkeypatch.setenv("CONDUCTO_IDENTITY_ID", "somebody-who-is-new")


@pytest.mark.usefixtures("none_yet")
def test_what_only_reads_makes_no_store(mode: str, tmp_path: Path) -> None:
    for scope in SCOPES.values():
        assert scope.list() == scope.list("a") == []
        assert not any(scope.exists(name) for name in ("", "a", "a/"))
        assert not scope.cache_exists("deps", "1")
        scope.clear_cache("deps")
        for read in (
            lambda name, scope=scope: scope.get(name, tmp_path / "out"),
            scope.gets,
            scope.open,
            scope.size,
            scope.info,
            scope.delete,
            partial(scope.delete, recursive=True),
        ):
            with pytest.raises(errors.NameNotFound) as caught:
                read("/a/b")
            assert caught.value.name == "/a/b"
        with pytest.raises(CacheNotFound):
            scope.restore_cache("deps", "1", tmp_path)
        with pytest.raises(CacheNotFound):
            scope.clear_cache("deps", "1")
        with pytest.raises(ValueError, match=r"\.\."):
            scope.exists("a/../b")
    assert co.data.archive("p1") == 0
    assert co.data.archive_quiet(0) == {}
    assert context.find_store() is None
    assert not (tmp_path / "base" / "default").exists()


@cloud_only
def test_a_bucket_that_is_not_there_is_no_store_that_is_empty(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDUCTO_S3_BUCKET", "there-is-none-of-this-name")
    with pytest.raises(errors.BucketNotFound):
        co.data.user.list()


@local_only
def test_a_store_that_another_makes_is_seen_at_once(mode: str) -> None:
    assert co.data.user.list() == []
    code = "import conducto as co; co.data.user.puts('a', b'')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert co.data.user.list() == ["a"]
    assert context.open_store().check(read_data=True).exit_code == 0


@local_only
@pytest.mark.parametrize("after", range(2))
@pytest.mark.parametrize("names", [("x", "x/y"), ("x/y", "x")])
def test_what_is_moved_into_a_folder_of_its_name_is_there_all_the_time(
    mode: str, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str], after: int
) -> None:
    source, target = names
    co.data.user.puts(source, b"1")
    store, scope = co.data.user._store(), co.data.user.prefix()
    move = partial(store.rename, scope + source, scope + target)
    change_after_each_read(monkeypatch, [lambda: None] * after + [move])
    assert co.data.user.exists("x")


@scopes
class TestNames:
    def test_puts_then_gets(self, scope: Scope) -> None:
        assert scope.puts("a/b", b"content") is None
        assert scope.gets("a/b") == b"content"
        assert scope.size("a/b") == 7
        assert scope.exists("a/b") is True

    def test_a_leading_slash_is_dropped(self, scope: Scope) -> None:
        scope.puts("/flask/ip", b"1")
        assert scope.gets("flask/ip") == scope.gets("/flask/ip") == scope.gets("//flask/ip") == b"1"
        assert scope.list("") == ["flask/ip"]

    @pytest.mark.parametrize("name", ["..", "../a", "a/..", "a/../b", "/../a"])
    def test_dots_are_refused_everywhere(self, scope: Scope, name: str, tmp_path: Path) -> None:
        message = rf"name '{name}' has a '\.\.' component"
        calls = [
            lambda: scope.gets(name),
            lambda: scope.get(name, tmp_path / "out"),
            lambda: scope.puts(name, b""),
            lambda: scope.put(name, __file__),
            lambda: scope.size(name),
            lambda: scope.exists(name),
            lambda: scope.delete(name),
            lambda: scope.delete(name, recursive=True),
            lambda: scope.url(name),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call()
        with pytest.raises(ValueError, match=r"has a '\.\.' component"):
            scope.list(name)
        with pytest.raises(ValueError, match=r"has a '\.\.' component"):
            scope.save_cache(name, "1", tmp_path)
        with pytest.raises(ValueError, match=r"has a '\.\.' component"):
            scope.clear_cache("ok", "../../x")

    @pytest.mark.parametrize("name", ["", "/", "//"])
    def test_an_empty_name_is_refused(self, scope: Scope, name: str) -> None:
        scope.puts("a", b"")
        with pytest.raises(ValueError, match=f"name '{name}' is empty"):
            scope.delete(name, recursive=True)
        with pytest.raises(ValueError, match="is empty"):
            scope.puts(name, b"")
        assert scope.exists("a")

    def test_other_bad_names(self, scope: Scope) -> None:
        with pytest.raises(ValueError, match=r"has a '\.' component"):
            scope.puts("./a", b"")
        calls = [scope.exists, scope.gets, scope.delete, lambda name: scope.puts(name, b"")]
        for call in (*calls, scope.bound(pipeline_id="7").url):
            for name, why in [
                ("a\0b", r"name 'a\\x00b' has a NUL byte"),
                ("x" * 500, r"name 'x{40}'\.\.\. has 500 bytes in UTF-8; the most is 4\d\d here"),
                ("\ud800", r"name '\\ud800' is not valid Unicode"),
            ]:
                with pytest.raises(errors.InvalidName, match=why):
                    call(name)
        with pytest.raises(errors.InvalidName, match=r"prefix 'a\\x00b' has a NUL"):
            scope.list("a\0b")
        with pytest.raises(errors.InvalidName, match=r"prefix '\\ud800' is not valid Unicode"):
            scope.list("\ud800")
        for name in ("a\0b", "x" * 500, "\ud800"):
            with pytest.raises(errors.InvalidName, match="name 'conducto-cache/"):
                scope.clear_cache(name)
        with pytest.raises(ValueError, match="a name is a str, not int"):
            scope.puts(5, b"")  # type: ignore[arg-type]

    def test_the_longest_name(self, scope: Scope) -> None:
        """What stands before it in the store takes its part, and is in no message."""
        longest = castore.NAME_BYTES_MAX - len(scope.prefix())
        for name in ("x" * longest, "/" + "é" * (longest // 2)):
            scope.puts(name, b"1")
            assert scope.list(name) == [name]
        for name in ("x" * (longest + 1), "é" * (longest // 2 + 1)):
            with pytest.raises(errors.InvalidName, match=f"^name '{name[:40]}'.* the most is"):
                scope.puts(name, b"1")

    @pytest.mark.parametrize("name", ["gone", "/gone", "dir", "a/gone"])
    def test_a_missing_name(self, scope: Scope, name: str, tmp_path: Path) -> None:
        scope.puts("dir/x", b"")
        calls = [
            lambda: scope.gets(name),
            lambda: scope.gets(name, byte_range=[0, 1]),
            lambda: scope.get(name, tmp_path / "out"),
            lambda: scope.size(name),
        ]
        if name != "dir":
            calls += [lambda: scope.delete(name), lambda: scope.delete(name, recursive=True)]
        for call in calls:
            with pytest.raises(FileNotFoundError, match=f"no object is named '{name}'") as caught:
                call()
            assert isinstance(caught.value, errors.NameNotFound)
            assert caught.value.name == name
        assert not (tmp_path / "out").exists()

    def test_a_folder_is_no_object_and_says_so(self, scope: Scope, tmp_path: Path) -> None:
        scope.puts("dir/x", b"")
        for name in ("dir", "dir/", "/dir"):
            for call in (scope.gets, scope.size, lambda name: scope.get(name, tmp_path / "out")):
                with pytest.raises(IsADirectoryError, match=f"named '{name}': it is a folder"):
                    call(name)

    def test_the_folder_of_all(self, scope: Scope) -> None:
        for name in ("", "/", ".", "./"):
            assert scope.exists(name) is False
        scope.puts("a/b", b"")
        scope.puts(".hidden", b"")
        for name in ("", "/", ".", "./"):
            assert scope.exists(name) is True
        assert scope.list("") == scope.list(".") == scope.list("./") == [".hidden", "a/b"]
        assert scope.list(".h") == [".hidden"]


@scopes
class TestBytes:
    def test_what_can_not_be_read_goes_by_the_name_that_was_given(
        self, scope: Scope, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As after damage on S3. Another object's goes by its own."""
        scope.puts("x", b"x")
        for damaged, shown in ((f"{scope.prefix()}x", "x"), ("other", "other")):

            def unreadable(*_: object, damaged: str = damaged) -> bytes:
                raise errors.ManifestUnreadable(damaged, "why")

            monkeypatch.setattr(castore.Store, "gets", unreadable)
            with pytest.raises(errors.ManifestUnreadable, match=rf"^the manifest of '{shown}' can"):
                scope.gets("x")

    def test_byte_ranges_are_half_open_and_clamped(self, scope: Scope) -> None:
        scope.puts("x", b"0123456789")
        assert scope.gets("x", byte_range=[2, 5]) == b"234"
        assert scope.gets("x", byte_range=(8, 99)) == b"89"
        assert scope.gets("x", byte_range=[10, 99]) == b""
        assert scope.gets("x", byte_range=[3, 3]) == b""
        assert scope.gets("x", byte_range=[]) == scope.gets("x", byte_range=None) == b"0123456789"

    @pytest.mark.parametrize("byte_range", [[-1, 2], [5, 2], [1], [1, 2, 3], [0.0, 2.0], ["0", 1]])
    def test_bad_ranges(self, scope: Scope, byte_range: list[int]) -> None:
        scope.puts("x", b"0123456789")
        with pytest.raises(ValueError, match="range"):
            scope.gets("x", byte_range=byte_range)

    def test_byte_range_is_keyword_only(self, scope: Scope) -> None:
        with pytest.raises(TypeError):
            scope.gets("x", [0, 1])  # type: ignore[call-arg]

    @pytest.mark.parametrize("obj", ["text", 5, None, ["a"]])
    def test_puts_of_what_is_not_bytes(self, scope: Scope, obj: object) -> None:
        with pytest.raises(ValueError) as caught:
            scope.puts("x", obj)  # type: ignore[arg-type]
        assert str(caught.value) == f"Expected object of type bytes, but got {obj!r}"
        assert not scope.exists("x")

    def test_puts_of_a_long_text_does_not_repeat_it_all(self, scope: Scope) -> None:
        with pytest.raises(ValueError, match="Expected object of type bytes") as caught:
            scope.puts("x", "long" * 10**6)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 300

    def test_other_buffers(self, scope: Scope) -> None:
        for obj, expected in [
            (bytearray(b"ab"), b"ab"),
            (memoryview(b"abcdef")[::2], b"ace"),
            (array.array("H", [1, 2]), array.array("H", [1, 2]).tobytes()),
            (memoryview(b""), b""),
        ]:
            scope.puts("x", obj)  # type: ignore[arg-type]
            assert scope.gets("x") == expected

    def test_overwrite(self, scope: Scope) -> None:
        scope.puts("x", b"old" * 100)
        scope.puts("x", b"new")
        assert scope.gets("x") == b"new"

    def test_keyword_names_are_the_old_ones(self, scope: Scope, tmp_path: Path) -> None:
        scope.puts(name="x", obj=b"1")
        scope.get(name="x", file=str(tmp_path / "x"), local=None)
        scope.put(name="y", file=str(tmp_path / "x"), skip_cleanup=True)
        assert scope.list(prefix="y") == ["y"]
        scope.delete(name="y", recursive=False)


@scopes
class TestFiles:
    @pytest.mark.parametrize("permissions", [0o644, 0o755, 0o600, 0o440])
    def test_mode_bits_are_kept(self, scope: Scope, tmp_path: Path, permissions: int) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(b"#!/bin/sh\n" * 10_000)
        source.chmod(permissions)
        scope.put("tool", str(source))
        scope.get("tool", target)
        assert target.read_bytes() == source.read_bytes()
        assert target.stat().st_mode & 0o7777 == permissions

    def test_get_replaces_a_file_whole(self, scope: Scope, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.write_bytes(b"before")
        with target.open("rb") as open_before:
            scope.puts("x", b"after")
            scope.get("x", target)
            assert open_before.read() == b"before"
        assert target.read_bytes() == b"after"
        assert [entry.name for entry in tmp_path.iterdir() if entry.name != "base"] == ["target"]

    def test_a_failed_get_leaves_the_file(self, scope: Scope, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.write_bytes(b"before")
        with pytest.raises(FileNotFoundError):
            scope.get("gone", target)
        assert target.read_bytes() == b"before"

    def test_get_into_a_folder(self, scope: Scope, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        scope.puts("/models/latest/weights.bin", b"w")
        scope.get("/models/latest/weights.bin", folder)
        assert (folder / "weights.bin").read_bytes() == b"w"

    def test_get_where_there_is_no_folder(self, scope: Scope, tmp_path: Path) -> None:
        scope.puts("x", b"")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            scope.get("x", tmp_path / "nowhere" / "x")

    def test_put_of_a_missing_file_names_it(self, scope: Scope, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no-such-file"):
            scope.put("x", tmp_path / "no-such-file")
        assert not scope.exists("x")

    def test_put_of_a_folder(self, scope: Scope, tmp_path: Path) -> None:
        with pytest.raises(IsADirectoryError, match=str(tmp_path)):
            scope.put("x", tmp_path)

    def test_file_objects(self, scope: Scope, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"content" * 1000)
        with source.open("rb") as file:
            scope.put("x", file)
        with (tmp_path / "target").open("wb") as file:
            scope.get("x", file)
        assert (tmp_path / "target").read_bytes() == source.read_bytes()


@scopes
class TestDirectories:
    def test_exists_of_a_directory(self, scope: Scope) -> None:
        scope.puts("dir/sub/x", b"")
        assert scope.exists("dir")
        assert scope.exists("dir/")
        assert scope.exists("/dir/sub")
        assert not scope.exists("di")
        assert not scope.exists("dir/su")
        assert not scope.exists("dir/sub/x/y")

    @pytest.mark.parametrize("name", ["dir", "/dir", "dir/", "dir/sub"])
    def test_puts_where_a_directory_is(self, scope: Scope, name: str) -> None:
        scope.puts("dir/sub/x", b"")
        with pytest.raises(IsADirectoryError, match=f"Is a directory.*'{name}'"):
            scope.puts(name, b"")
        with pytest.raises(IsADirectoryError, match=f"Is a directory.*'{name}'"):
            scope.put(name, __file__)
        assert scope.list("") == ["dir/sub/x"]

    def test_a_name_that_ends_in_a_slash(self, scope: Scope) -> None:
        with pytest.raises(IsADirectoryError, match="does not end in '/'"):
            scope.puts("new/", b"")

    def test_an_object_and_names_below_it(self, scope: Scope) -> None:
        scope.puts("a", b"1")
        scope.puts("a/b", b"2")
        scope.puts("a", b"3")  # an object that is there can be replaced
        assert (scope.gets("a"), scope.gets("a/b")) == (b"3", b"2")
        scope.delete("a")
        assert scope.list("") == ["a/b"]

    @pytest.mark.parametrize("name", ["dir", "/dir", "dir/"])
    def test_delete_of_a_directory_needs_recursive(self, scope: Scope, name: str) -> None:
        scope.puts("dir/x", b"")
        with pytest.raises(IsADirectoryError, match=f"delete it with recursive.*'{name}'"):
            scope.delete(name)
        assert scope.exists("dir/x")
        scope.delete(name, recursive=True)
        assert not scope.exists("dir")

    def test_delete_recursive_is_bounded(self, scope: Scope) -> None:
        for name in ("a", "a/1", "a/2/3", "a2", "a2/x", "a.txt", "ab/c", "b"):
            scope.puts(name, b"")
        scope.delete("a", recursive=True)
        assert scope.list("") == ["a.txt", "a2", "a2/x", "ab/c", "b"]

    @pytest.mark.parametrize("first", ["a", "none"])
    def test_delete_recursive_of_an_object_that_comes_meanwhile(
        self, scope: Scope, monkeypatch: pytest.MonkeyPatch, first: str
    ) -> None:
        """Or goes: between the look for it and the commit."""
        if first == "a":
            scope.puts("a", b"1")
        scope.puts("a/b", b"1")
        exists, done = castore.Store.exists, []

        def then_changed(store: castore.Store, name: str) -> bool:
            found = exists(store, name)
            if not done:
                done.append(name)
                store.delete(name) if found else store.puts(name, b"2")
            return found

        monkeypatch.setattr(castore.Store, "exists", then_changed)
        scope.delete("a", recursive=True)
        assert done
        assert scope.list("") == []

    def test_delete_recursive_of_a_plain_object(self, scope: Scope) -> None:
        scope.puts("a", b"")
        scope.delete("a", recursive=True)
        assert scope.list("") == []

    def test_delete(self, scope: Scope) -> None:
        scope.puts("a", b"")
        scope.puts("ab", b"")
        assert scope.delete("/a") is None
        assert scope.list("") == ["ab"]


@scopes
class TestList:
    NAMES = ("z", "a", "é/ü", "a2", "a/2", "a/1", "b/c/d")

    def test_plain_string_prefix(self, scope: Scope) -> None:
        for name in self.NAMES:
            scope.puts(name, b"")
        assert scope.list("") == scope.list() == sorted(self.NAMES)
        assert scope.list("a") == ["a", "a/1", "a/2", "a2"]
        assert scope.list("a/") == ["a/1", "a/2"]
        assert scope.list("b/c") == ["b/c/d"]
        assert scope.list("é") == ["é/ü"]

    def test_the_callers_spelling(self, scope: Scope) -> None:
        for name in self.NAMES:
            scope.puts(name, b"")
        assert scope.list("/a/") == ["/a/1", "/a/2"]
        assert scope.list("/") == ["/" + name for name in sorted(self.NAMES)]
        assert scope.list("//b") == ["//b/c/d"]
        for name in scope.list("/a"):
            scope.gets(name)

    def test_none(self, scope: Scope) -> None:
        assert scope.list("") == []
        scope.puts("a", b"")
        assert scope.list("b") == []

    def test_dots_in_a_prefix_of_a_name(self, scope: Scope) -> None:
        scope.puts(".coverage.1", b"")
        scope.puts("a..b", b"")
        assert scope.list(".cov") == [".coverage.1"]
        assert scope.list("a..") == ["a..b"]


class TestScopes:
    def test_where_names_live_in_one_store(self, mode: str, tmp_path: Path) -> None:
        co.data.pipeline.puts("x", b"pipeline")
        co.data.user.puts("x", b"user")
        local_path = str(tmp_path / "base" / "default" / "store")
        bucket, identity = (
            os.environ.get(name) for name in ("CONDUCTO_S3_BUCKET", "CONDUCTO_IDENTITY_ID")
        )
        cloud_path = f"s3://{bucket}/{identity}/store"
        with context.open_store() as store:
            assert list(store.names()) == ["data/x", "pipelines/p1/data/x"]
            assert store.path == (local_path if mode == "local" else cloud_path)
        context.close_stores()

    def test_scopes_do_not_see_each_other(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        co.data.pipeline.puts("x", b"p1")
        monkeypatch.setenv("CONDUCTO_PIPELINE_ID", "p10")
        assert not co.data.pipeline.exists("x")
        assert not co.data.user.exists("x")
        assert co.data.pipeline.list("") == []
        co.data.pipeline.puts("x", b"p10")
        assert co.data.pipeline.bound(pipeline_id="p1").gets("x") == b"p1"
        assert co.data.pipeline.gets("x") == b"p10"

    def test_pipelines_deduplicate_against_each_other(self, mode: str) -> None:
        content = os.urandom(1 << 20)
        for pipeline_id in ("p1", "p2", "p3"):
            co.data.pipeline.bound(pipeline_id=pipeline_id).puts("x", content)
        stats = context.open_store().stats()
        assert stats.logical_bytes == 3 << 20
        assert stats.unique_bytes == 1 << 20

    def test_pipeline_needs_an_id(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CONDUCTO_PIPELINE_ID")
        with pytest.raises(
            co.ContextError, match=r"Pipeline-scoped data requires .*CONDUCTO_PIPELINE_ID.*--id"
        ):
            co.data.pipeline.exists("x")
        assert issubclass(co.ContextError, RuntimeError)
        co.data.user.puts("x", b"")  # that of the user does not

    @pytest.mark.parametrize("bad", ["", "a/b", "/", ".", "..", "a\0b", "\udcff"])
    def test_ids_and_profiles_are_one_part_of_a_path(self, mode: str, bad: str) -> None:
        with pytest.raises(InvalidContext, match="pipeline id"):
            co.data.pipeline.bound(pipeline_id=bad).exists("x")
        with pytest.raises(ValueError, match="pipeline id"):
            co.data.archive(bad)
        if bad:
            with pytest.raises(InvalidContext, match="profile"):
                co.data.user.bound(profile=bad).exists("x")

    def test_aliases(self) -> None:
        assert co.temp_data is co.data.pipeline
        assert co.perm_data is co.data.user

    @local_only
    def test_bound_keeps_what_was_bound(self, mode: str) -> None:
        both = co.data.pipeline.bound(pipeline_id="p7").bound(profile="other")
        both.puts("x", b"7")
        assert co.data.pipeline.bound(pipeline_id="p7").exists("x") is False
        assert both.bound(local=True).gets("x") == b"7"
        assert co.data.pipeline._pipeline_id is None

    def test_archive(self, mode: str) -> None:
        for pipeline_id in ("p1", "p10"):
            bound = co.data.pipeline.bound(pipeline_id=pipeline_id)
            bound.puts("x", b"")
            bound.puts("y/z", b"")
        co.data.user.puts("x", b"")
        assert co.data.archive("p1") == 2
        assert co.data.pipeline.list("") == []
        assert co.data.pipeline.bound(pipeline_id="p10").list("") == ["x", "y/z"]
        assert co.data.user.list("") == ["x"]
        assert co.data.archive("p1") == 0

    def test_archive_quiet(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the last write of any of a pipeline's names; `1` never takes `12` with it."""
        now, day = time.time_ns(), 86_400 * 10**9
        ages = {"1": [9, 8], "12": [9, 1, 8], "123": [0], "quiet": [30]}
        for pipeline_id, days in ages.items():
            bound = co.data.pipeline.bound(pipeline_id=pipeline_id)
            for i, old in enumerate(days):
                monkeypatch.setattr(time, "time_ns", lambda old=old: now - old * day)
                bound.puts(f"x{i}", b"")
        co.data.user.puts("pipelines/1/data/mine", b"")
        monkeypatch.setattr(time, "time_ns", lambda: now)
        seven = 7 * 86_400
        found = {"1": 2, "quiet": 1}
        assert co.data.archive_quiet(seven, dry_run=True) == found
        assert co.data.archive_quiet(seven) == found
        assert co.data.archive_quiet(seven) == {}
        for pipeline_id, days in ages.items():
            left = co.data.pipeline.bound(pipeline_id=pipeline_id).list("")
            assert len(left) == (0 if pipeline_id in found else len(days))
        assert co.data.user.list("") == ["pipelines/1/data/mine"]
        assert co.data.archive_quiet(0).keys() == {"12", "123"}
        with pytest.raises(ValueError, match="negative"):
            co.data.archive_quiet(-1)

    def test_archive_quiet_takes_what_was_written_before_that_time_only(
        self, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And not what was written just then."""
        written_s = int(time.time()) - 60
        with monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda: written_s * 10**9)
            co.data.pipeline.puts("x", b"")
        monkeypatch.setattr(time, "time", lambda: written_s + 60.0)
        assert co.data.archive_quiet(60, dry_run=True) == co.data.archive_quiet(60) == {}
        assert co.data.archive_quiet(59) == {"p1": 1}

    def test_what_is_archived_is_in_the_store_that_the_caller_names(self, mode: str) -> None:
        """Here it is on this machine, of another profile: nothing goes anywhere else."""
        there: dict[str, Any] = {"local": True, "profile": "other"}
        other = co.data.pipeline.bound(**there)
        all_of_them = [co.data.pipeline, co.data.pipeline.bound(local=True), other]
        for each in all_of_them:
            each.puts("x", b"")
        assert co.data.archive("p1", **there) == 1
        assert [each.exists("x") for each in all_of_them] == [True, True, False]
        other.puts("x", b"")
        other.puts("y", b"")
        assert co.data.archive_quiet(0, dry_run=True, **there) == {"p1": 2}
        assert co.data.archive_quiet(0, **there) == {"p1": 2}
        assert [each.exists("x") for each in all_of_them] == [True, True, False]


class TestWhere:
    @pytest.mark.parametrize(
        ("environment", "local", "expected"),
        [
            (None, None, True),
            ("", None, True),
            ("external", None, True),
            ("worker_local", None, True),
            ("manager_local", None, True),
            ("worker_cloud", None, False),
            ("manager_k8s", None, False),
            ("debug_cloud", None, False),
            ("worker_cloud", True, True),
            ("worker_local", False, False),
        ],
    )
    def test_mode(
        self,
        environment: str | None,
        local: bool | None,
        expected: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("CONDUCTO_EXECUTION_ENV", raising=False)
        if environment is not None:
            monkeypatch.setenv("CONDUCTO_EXECUTION_ENV", environment)
        assert context.is_local(local) is expected

    def test_local_overrides_the_mode(self, mode: str, tmp_path: Path) -> None:
        if mode == "cloud":
            co.data.user.bound(local=True).puts("x", b"on this machine")
            assert co.data.user.exists("x") is False
        co.data.user.puts("y", b"here")
        assert co.data.user.bound(local=mode == "local").gets("y") == b"here"
        if mode == "cloud":
            co.data.user.get("x", tmp_path / "x", local=True)  # for one call
            assert (tmp_path / "x").read_bytes() == b"on this machine"
            assert co.data.user.list("") == ["y"]
            assert context.open_store(local=True).path.startswith(str(tmp_path))
        else:
            with pytest.raises(co.ContextError, match="CONDUCTO_S3_BUCKET"):
                co.data.user.get("y", tmp_path / "y", local=False)
            with pytest.raises(co.ContextError, match="CONDUCTO_S3_BUCKET"):
                co.data.user.bound(local=False).list("")

    @local_only
    def test_put_of_a_file_of_the_store(self, mode: str) -> None:
        co.data.user.puts("x", b"")
        path = os.path.join(context.store_url(), "castore.json")
        with pytest.raises(ValueError, match="store"):
            co.data.user.put("y", path)

    @local_only
    def test_base_dir_and_profile(
        self, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = tmp_path / "base"
        monkeypatch.setenv("CONDUCTO_PROFILE", "work")
        assert context.store_url() == str(base / "work" / "store")
        assert context.store_url(profile="home") == str(base / "home" / "store")
        monkeypatch.setenv("CONDUCTO_PROFILE", "__none__")
        assert context.store_url() == str(base / "default" / "store")
        monkeypatch.delenv("CONDUCTO_BASE_DIR")
        monkeypatch.setenv("HOME", str(tmp_path / "someone"))
        assert context.store_url() == str(tmp_path / "someone/.conducto/default/store")
        monkeypatch.setenv("CONDUCTO_BASE_DIR", "~/elsewhere")
        assert context.store_url() == str(tmp_path / "someone/elsewhere/default/store")

    @local_only
    def test_the_configured_profile(
        self, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tmp_path / "config"
        config.write_text("[general]\ndefault = abcd-1234\n[other]\nx = 50%\n")
        monkeypatch.setenv("CONDUCTO_CONFIG", str(config))
        assert context.store_url().endswith("/abcd-1234/store")
        monkeypatch.setenv("CONDUCTO_PROFILE", "work")
        assert context.store_url().endswith("/work/store")
        monkeypatch.delenv("CONDUCTO_PROFILE")
        damaged = tmp_path / "damaged"
        damaged.write_text("not a configuration")
        monkeypatch.setenv("CONDUCTO_CONFIG", str(damaged))
        with pytest.raises(co.ContextError, match="damaged"):
            context.store_url()

    @local_only
    def test_the_base_dir_is_private(self, mode: str, tmp_path: Path) -> None:
        co.data.user.puts("x", b"")
        assert (tmp_path / "base" / "default").stat().st_mode & 0o077 == 0

    @local_only
    def test_a_base_dir_that_is_a_file(
        self, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("CONDUCTO_BASE_DIR", str(tmp_path / "file"))
        with pytest.raises(errors.NotAStore, match="file/default/store lies below a file"):
            co.data.user.exists("x")
        with pytest.raises(NotADirectoryError, match="file"):
            co.data.user.puts("x", b"")

    def test_importing_is_cheap(self) -> None:
        program = (
            "import sys, conducto; print([m for m in ('lmdb', 'zstandard', 'tarfile', 'boto3',"
            " 'castore.store', 'numpy') if m in sys.modules])"
        )
        found = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert found.stdout == "[]\n"


@cloud_only
class TestCloud:
    def test_needs_a_bucket(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CONDUCTO_S3_BUCKET")
        with pytest.raises(
            co.ContextError, match=r"CONDUCTO_S3_BUCKET does not say.*set it, or use local mode"
        ):
            co.data.user.gets("x")

    @pytest.mark.parametrize("bucket", ["s3://b", "a/b", "a?b", "-x", "x"])
    def test_buckets_that_are_none(
        self, mode: str, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CONDUCTO_S3_BUCKET", bucket)
        with pytest.raises(InvalidContext, match="must be a bucket's name"):
            co.data.user.gets("x")

    @pytest.mark.parametrize(
        "identity", ["a/b", "..", ".", "a?region=x", "*", "${x}", "a b", "\u00e9"]
    )
    def test_identities_that_are_none(
        self, mode: str, identity: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CONDUCTO_IDENTITY_ID", identity)
        with pytest.raises(InvalidContext, match="can't be an identity"):
            co.data.user.gets("x")

    def test_a_bucket_that_is_not_there(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONDUCTO_S3_BUCKET", "no-such-bucket")
        with pytest.raises(errors.BucketNotFound, match="no bucket 'no-such-bucket' at"):
            co.data.user.puts("x", b"")

    def test_the_first_use_makes_the_users_store(
        self, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CONDUCTO_IDENTITY_ID", f"new-{os.urandom(4).hex()}")
        assert co.data.user.list("") == []
        co.data.user.puts("x", b"1")
        context.close_stores()
        assert co.data.user.gets("x") == b"1"

    def test_users_do_not_see_each_other(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        co.data.user.puts("x", b"1")
        monkeypatch.setenv("CONDUCTO_IDENTITY_ID", f"new-{os.urandom(4).hex()}")
        assert co.data.user.exists("x") is False

    def test_another_process_of_the_user(self, mode: str) -> None:
        co.data.user.puts("x", b"1" * 200_000)
        program = (
            "import conducto as co; print(len(co.data.user.gets('x', byte_range=[5, 150000])))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout == "149995\n"
