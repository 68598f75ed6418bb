"""The command `conducto`."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import castore
import conducto as co
from castore.errors import SourceChanged, TimeOutOfRange
from castore.stream import chunker
from conducto import command, context, takeover
from conducto.arguments import UsageError
from conducto.errors import NotTakenOver
from conducto.run.records import Records

pytest_plugins = ["modes"]
pytestmark = pytest.mark.usefixtures("mode")

local_only = pytest.mark.parametrize("mode", ["local"], indirect=True)


def fill() -> None:
    for pipeline_id in ("1", "12"):
        co.data.pipeline.bound(pipeline_id=pipeline_id).puts("x", b"x")
    co.data.user.puts("mine", b"mine")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = command.main(argv)
    return code, *capsys.readouterr()


def test_archive(capsys: pytest.CaptureFixture[str]) -> None:
    fill()
    assert run(capsys, "archive", "1") == (0, "1\n", "")
    assert run(capsys, "archive", "1") == (0, "0\n", "")
    assert co.data.pipeline.bound(pipeline_id="12").gets("x") == b"x"
    assert co.data.user.gets("mine") == b"mine"


def warn() -> None:
    co.data.user.puts("name", b"x")
    warnings.warn("mind this", UserWarning, stacklevel=1)


@local_only
@pytest.mark.parametrize(
    ("program", "run_it", "theirs"),
    [
        ("conducto", lambda: command.main(["take-over"]), []),
        (
            "some.py",
            lambda: co.main({"warn": warn}, argv=["warn"], filename="some.py"),
            ["mind this"],
        ),
    ],
)
def test_a_warning_of_ours_is_one_line_and_any_other_is_pythons(
    mode: str,
    program: str,
    run_it: Callable[[], object],
    theirs: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunker, "_native", None)
    monkeypatch.setattr(chunker, "_warned", False)
    with warnings.catch_warnings(record=True) as pythons:
        warnings.simplefilter("always")
        before = warnings.showwarning
        run_it()
        assert warnings.showwarning is before
    line = "warning: castore's C extension isn't built: .* and reinstall castore"
    assert re.fullmatch(rf"{program}: {line}\.\n", capsys.readouterr().err)
    assert [str(each.message) for each in pythons] == theirs


@local_only
def test_what_only_reads_makes_no_store(
    mode: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, "show")
    assert (code, out, err.count("\n")) == (0, "", 1)
    assert f"there is no store at {tmp_path}" in err
    verbs = ["show 1", "logs 1 node", "run --resume 1", f"mount {tmp_path} --read-only"]
    for verb in verbs:
        code, out, err = run(capsys, *verb.split())
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert f"there is no store at {tmp_path}" in err
    assert run(capsys, "archive", "1") == (0, "0\n", "")
    assert not (tmp_path / "base" / "default").exists()


def test_archive_what_went_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    fill()
    assert run(capsys, "archive", "--older-than", "7d") == (0, "{}\n", "")
    code, out, _ = run(capsys, "archive", "--older-than=0s", "--dry-run")
    assert (code, json.loads(out)) == (0, {"1": 1, "12": 1})
    assert co.data.pipeline.bound(pipeline_id="12").exists("x")
    code, out, _ = run(capsys, "archive", "--older-than", "0", "--dry-run")
    assert (code, json.loads(out)) == (0, {"1": 1, "12": 1})
    code, out, _ = run(capsys, "archive", "--older_than=0s")
    assert (code, json.loads(out)) == (0, {"1": 1, "12": 1})
    assert not co.data.pipeline.bound(pipeline_id="12").exists("x")
    assert co.data.user.gets("mine") == b"mine"


def test_one_that_somebody_runs_is_neither_archived_nor_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill()
    records = Records(context.open_store(), "1")
    records.create(co.Exec("true"), [])
    records.claim(1)
    for option in ("--dry-run", "--no-dry-run"):
        code, out, _ = run(capsys, "archive", "--older-than=0s", option)
        assert (code, json.loads(out)) == (0, {"12": 1})
    assert co.data.pipeline.bound(pipeline_id="1").exists("x")


def test_one_that_is_written_to_since_the_look_is_not_archived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill()
    look = castore.Store.list

    def written(store: castore.Store, prefix: str) -> Iterator[castore.ObjectInfo]:
        found = [*look(store, prefix)]
        monkeypatch.setattr(castore.Store, "list", look)
        co.data.pipeline.bound(pipeline_id="12").puts("y", b"")
        return iter(found)

    monkeypatch.setattr(castore.Store, "list", written)
    assert co.data.archive_quiet(0) == {"1": 1}
    assert co.data.pipeline.bound(pipeline_id="12").list() == ["x", "y"]


def test_one_that_goes_since_the_look_is_not_there_to_be_archived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill()
    look = castore.Store.list

    def deleted(store: castore.Store, prefix: str) -> Iterator[castore.ObjectInfo]:
        found = [*look(store, prefix)]
        monkeypatch.setattr(castore.Store, "list", look)
        co.data.pipeline.bound(pipeline_id="1").delete("x")
        return iter(found)

    monkeypatch.setattr(castore.Store, "list", deleted)
    assert co.data.archive_quiet(0) == {"12": 1}


@local_only
def test_what_does_not_tell_who_runs_it_does_not_keep_others_from_being_archived(
    mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later version recorded it, say; or it is no pipeline's at all."""
    fill()
    records = Records(context.open_store(), "1")
    records.create(co.Exec("true"), [])
    later = {**asdict(records.claim(1)), "later": 1}
    records.store.puts(records.session_key(1), json.dumps(later).encode())
    records.store.puts("pipelines//x", b"")
    unreadable = "who runs pipeline 1 is recorded in a way that this version can't read: "
    for option in ("--dry-run", "--no-dry-run"):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            code, out, err = run(capsys, "archive", "--older-than=0s", option)
        assert (code, json.loads(out)) == (0, {"12": 1})
        for words in (r"a pipeline id must .*''", rf"{unreadable}.*'later'"):
            assert re.search(rf"^conducto: warning: not archived: {words}$", err, re.MULTILINE)
        assert err.count("\n") == 2
    for verb in (["archive", "1"], ["show", "1"], ["run", "--resume", "1"], ["show"]):
        code, _, err = run(capsys, *verb)
        assert (code, err.count(unreadable)) == (1, 1)
    assert co.data.pipeline.bound(pipeline_id="1").exists("x")


def test_one_that_somebody_resumes_meanwhile_does_not_keep_others_from_being_archived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill()
    records = Records(context.open_store(), "1")
    records.create(co.Exec("true"), [])
    records.claim(1)
    monkeypatch.setattr(Records, "is_running", False)  # nor was it, a moment before
    assert co.data.archive_quiet(0) == {"12": 1}
    assert co.data.pipeline.bound(pipeline_id="1").exists("x")


@local_only
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no command given"),
        (["archive"], "takes a PIPELINE_ID"),  # and not that of the environment
        (["archive", "1", "--older-than", "7d"], "takes a PIPELINE_ID, or"),
        (["archive", "--older-than", "7"], "such as 7d"),
        (["archive", "--older-than", "-1d"], "such as 7d"),
        (["archive", "1", "--dry-run"], "goes with --older-than"),
        (["archive", "1", "2"], "unexpected argument"),
        (["delete", "1"], "'delete' is not one"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    fill()
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("conducto: ")
    assert words in err
    assert co.data.pipeline.bound(pipeline_id="1").exists("x")


@local_only
def test_help_version_and_names_that_can_not_be(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["archive", "--help"]):
        assert run(capsys, *argv) == (0, command.HELP, "")
    assert run(capsys, "--version")[1].startswith("conducto ")
    for bad in ("", "..", "a/b"):
        code, _, err = run(capsys, "archive", bad)
        assert code == 1
        assert "pipeline id" in err


@local_only
def test_ages() -> None:
    assert [command.age(text) for text in ("1s", "2m", "1.5h", "7d", "2w")] == [
        1, 120, 5400, 604_800, 1_209_600,
    ]  # fmt: skip
    for bad in ("", "d", "7", "7 d", "-7d", "7y", "1e3s"):
        with pytest.raises(UsageError):
            command.age(bad)


@local_only
def test_what_can_not_be_taken_over_is_named_and_the_others_are(
    mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(context.store_url()).parent / "data"
    (data / "folder").mkdir(parents=True)
    for name in ("changing", "folder/last", "old"):
        (data / name).write_bytes(b"1")
    (data / "elsewhere").symlink_to("folder")
    os.utime(data / "old", ns=(0, 1 << 63))  # the year 2262
    changed = SourceChanged(f"{data}/changing was truncated")
    put = castore.Transaction.put

    def changes(
        transaction: castore.Transaction, name: str, source: str, **options: Any
    ) -> castore.ObjectInfo:
        if name == "data/changing":
            raise changed
        return put(transaction, name, source, **options)

    monkeypatch.setattr(castore.Transaction, "put", changes)
    code, out, err = run(capsys, "take-over")
    done = json.loads(out)
    assert (code, err, done["put"]) == (1, "", 1)
    assert done["left_out"] == {
        str(data / "changing"): str(changed),
        str(data / "elsewhere"): "it is no regular file",
        str(data / "old"): str(TimeOutOfRange("data/old", 1 << 63)),
    }
    assert co.data.user.list() == ["folder/last"]


@local_only
def test_what_an_earlier_conducto_kept_is_taken_over(
    mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(context.store_url()).parent
    kept = {"data/a/b": b"1", "data/mine": b"older", "pipelines/7/data/c": b"2" * 10_000}
    for name, content in kept.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(content)
    (base / "data/a/b").chmod(0o750)
    os.utime(base / "data/a/b", ns=(1, 1_500_000_000_000_000_000))
    (base / "data/link").symlink_to("/etc/passwd")
    co.data.user.puts("mine", b"newer")
    with pytest.raises(FileNotFoundError, match=r"earlier Conducto kept .*data/a/b: .*take-over"):
        co.data.user.gets("a/b")
    pipeline = co.data.pipeline.bound(pipeline_id="7")
    with pytest.raises(NotTakenOver):
        pipeline.size("c")
    for again in (False, True):
        code, out, err = run(capsys, "take-over")
        put, there = (0, 3) if again else (2, 1)
        left_out = {str(base / "data/link"): "it is no regular file"}
        assert json.loads(out) == {"put": put, "there_already": there, "left_out": left_out}
        assert (code, err) == (1, "")
    assert co.data.user.list() == ["a/b", "mine"]
    assert co.data.user.gets("mine") == b"newer"
    assert pipeline.gets("c") == b"2" * 10_000
    info = context.open_store().info("data/a/b")
    assert (info.mode, info.mtime) == (0o750, 1_500_000_000)
    assert (base / "data/a/b").exists()
    assert context.open_store().check(read_data=True).exit_code == 0
    assert run(capsys, "take-over", "--no-local")[0] == 1
    assert run(capsys, "take-over", "x")[0] == 2


@local_only
def test_a_folder_to_take_over_that_can_not_be_looked_at_is_named(
    mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(context.store_url()).parent
    (base / "pipelines/1/data").mkdir(parents=True)
    (base / "pipelines/1/data/x").write_bytes(b"1")
    (base / "pipelines/empty").mkdir()
    (base / "pipelines/file").write_bytes(b"1")
    (base / "pipelines/locked").symlink_to("locked")  # as one without its x bit is to all but root
    (base / "data").symlink_to("data")
    code, out, err = run(capsys, "take-over")
    done = json.loads(out)
    assert (code, err, done["put"]) == (1, "", 1)
    assert done["left_out"].keys() == {str(base / "data"), str(base / "pipelines/locked/data")}
    (base / "pipelines").rename(base / "others")
    (base / "pipelines").symlink_to("pipelines")
    done = json.loads(run(capsys, "take-over")[1])
    assert done["left_out"].keys() == {str(base / "data"), str(base / "pipelines")}


@local_only
def test_no_link_is_followed_to_what_is_taken_over(
    mode: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = Path(context.store_url()).parent
    elsewhere = tmp_path / "elsewhere"
    for folder in (elsewhere / "data", base / "pipelines/1/data", base / "pipelines/2"):
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(b"1")
    (tmp_path / "empty").mkdir()
    (base / "data").symlink_to(elsewhere)
    (base / "pipelines/2/data").symlink_to(elsewhere)
    (base / "pipelines/3").symlink_to(elsewhere)
    (base / "pipelines/4").symlink_to(tmp_path / "empty")  # there is nothing that was kept
    code, out, err = run(capsys, "take-over")
    links = [str(base / each) for each in ("data", "pipelines/2/data", "pipelines/3")]
    assert json.loads(out) == {
        "put": 1,
        "there_already": 0,
        "left_out": dict.fromkeys(links, "it is a symbolic link"),
    }
    assert (code, err) == (1, "")
    (base / "pipelines").rename(tmp_path / "pipelines")
    (base / "pipelines").symlink_to(tmp_path / "pipelines")
    done = json.loads(run(capsys, "take-over")[1])
    assert (done["put"], done["there_already"]) == (0, 0)
    assert done["left_out"].keys() == {str(base / "data"), str(base / "pipelines")}
    assert list(context.open_store().names()) == ["pipelines/1/data/x"]


@local_only
@pytest.mark.parametrize(
    ("limit", "most", "taken", "wanted"),
    [
        ("GROUP_FILES_MAX", 4, False, 2),
        ("GROUP_FILES_MAX", 4, True, 7),
        ("GROUP_BYTES_MAX", 4, False, 2),
        ("GROUP_BYTES_MAX", 0, False, 7),
    ],
)
def test_files_are_taken_over_many_at_a_time(
    mode: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    most: int,
    taken: bool,
    wanted: int,
) -> None:
    """Each of a byte; one that is more than a group may hold is a group by itself."""
    data = Path(context.store_url()).parent / "data"
    data.mkdir(parents=True)
    for i in range(7):
        (data / str(i)).write_bytes(b"%d" % i)
    monkeypatch.setattr(takeover, limit, most)
    commit, commits = castore.Transaction.commit, 0

    def counted(transaction: castore.Transaction) -> None:
        nonlocal commits
        commits += 1
        if taken and commits == 1:
            co.data.user.puts("2", b"another's")
        commit(transaction)

    monkeypatch.setattr(castore.Transaction, "commit", counted)
    code, out, _ = run(capsys, "take-over")
    assert (code, json.loads(out)) == (
        0, {"put": 7 - taken, "there_already": int(taken), "left_out": {}},
    )  # fmt: skip
    assert commits == wanted
    assert co.data.user.gets("2") == (b"another's" if taken else b"2")
    assert co.data.user.list() == [str(i) for i in range(7)]


def test_each_verb_has_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in command.VERBS:
        code, out, err = run(capsys, verb, "--help")
        assert (code, out.partition(":")[0], err) == (0, "usage", "")
