"""The `castore` command with `-r s3://...`: every verb, its messages and its exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import free_port
from servers import Server

from castore.cli import exits, main
from castore.cli.gc import _print_report
from castore.s3.client.bucket import Bucket
from castore.s3.keys import PACKS
from castore.stream.reports import GcReport

pytest_plugins = ["servers"]

DATA = os.urandom(300_000)


class Result(NamedTuple):
    code: int
    out: bytes
    err: str


Run = Callable[..., Result]


@pytest.fixture
def bare(
    aws_environment: None,
    capsysbinary: pytest.CaptureFixture[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run `castore ARGUMENTS` in a folder of its own, with no store named."""
    monkeypatch.delenv("CASTORE_STORE", raising=False)
    monkeypatch.delenv("CASTORE_DEBUG", raising=False)
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    return run


@pytest.fixture
def run(bare: Run, moto_server: Server) -> Run:
    def run(*arguments: object, stdin: bytes = b"") -> Result:
        return bare("-r", moto_server.url(), *arguments, stdin=stdin)

    return run


def test_no_collection_is_asked_for_before_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    """What it says is a time in minutes."""
    for due in (1_800_000_000.0, 1_800_000_000.5, 1_800_000_059.0):
        _print_report(GcReport(dry_run=False, packs_condemned=1, next_run_at=due))
        [told] = re.findall(r"removed from (.*) on", capsys.readouterr().out)
        assert due <= time.mktime(time.strptime(told, "%Y-%m-%d %H:%M")) < due + 60


def test_what_is_said_of_packs(capsys: pytest.CaptureFixture[str]) -> None:
    """On S3 those that are removed are not those that are rewritten: they go a day later."""
    report = GcReport(False, packs_removed=2, packs_rewritten=5, bytes_rewritten=1 << 20)
    _print_report(report)
    report.orphans_removed = 1
    _print_report(report)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines if line.startswith("packs")] == [
        "removed",
        "removed, 1 of which no commit had named",
    ]
    assert sum("copied from 5 packs: still in use" in line for line in lines) == 2


def test_every_verb(run: Run, moto_server: Server) -> None:
    Path("file").write_bytes(DATA)
    Path("file").chmod(0o750)
    Path("folder/sub").mkdir(parents=True)
    Path("folder/sub/x").write_bytes(b"x")
    Path("folder/y").write_bytes(b"y")
    made = f"castore: created store at {moto_server.url()}\n"
    assert run("put", "file", "a/large") == (0, b"", made)
    assert run("put", "-", "a/small", stdin=b"0123456789") == (0, b"", "")
    assert run("put", "-R", "folder", "f") == (0, b"", "")
    assert run("ls").out == b"a/large\na/small\nf/sub/x\nf/y\n"
    assert run("ls", "-l", "a/large").out.startswith(b"-rwxr-x---   293.0 KiB")
    assert run("cat", "a/small", "--range", "2:5").out == b"234"
    assert run("cat", "a/large", "a/small").out == DATA + b"0123456789"
    assert run("cat", "a/large", "--range", "299990:").out == DATA[-10:]
    assert run("get", "a/large", "back").code == 0
    assert Path("back").read_bytes() == DATA
    assert Path("back").stat().st_mode & 0o777 == 0o750
    assert run("get", "-R", "f", "out").code == 0
    assert Path("out/sub/x").read_bytes() == b"x"
    assert json.loads(run("stat", "--json", "a/large").out)["size"] == len(DATA)
    assert run("cp", "a/large", "b/").code == 0
    assert run("mv", "b/large", "c").code == 0
    assert json.loads(run("du", "--json", "a").out.splitlines()[-1])["size"] == len(DATA) + 10
    stats = json.loads(run("stats", "--json").out)
    assert (stats["objects"], stats["packs"]) == (5, 1)
    assert b"on S3" in run("stats").out
    assert run("rm", "--json", "c").out == b'{"removed": 1}\n'
    assert run("rm", "--json", "-R", "f", "a").out == b'{"removed": 4}\n'
    assert run("ls") == (0, b"", "")


def test_a_put_that_makes_no_store_is_silent(run: Run) -> None:
    assert "created store" in run("put", "-", "x", stdin=b"1").err
    assert run("put", "-", "x", stdin=b"2").err == ""
    refused = run("put", "--if-absent", "-", "x", stdin=b"3")
    assert (refused.code, refused.err) == (
        1,
        "castore: an object is already named 'x': choose another name, or delete it first\n",
    )
    assert run("cat", "x").out == b"2"


def test_reading_makes_no_store(run: Run, moto_server: Server) -> None:
    for verb in (["ls"], ["cat", "x"], ["rm", "x"], ["stats"], ["cp", "x", "y"]):
        failed = run(*verb)
        assert (failed.code, failed.out) == (exits.NO_STORE, b"")
        assert "there is no store at s3://" in failed.err
        assert failed.err.count("\n") == 1
    assert "Contents" not in moto_server.client().list_objects_v2(Bucket=moto_server.bucket)


def test_missing_names(run: Run) -> None:
    run("put", "-", "x", stdin=b"1")
    for verb in (["cat", "gone"], ["get", "gone"], ["stat", "gone"], ["rm", "gone"], ["du", "g/"]):
        failed = run(*verb)
        assert (failed.code, failed.err.count("\n")) == (exits.NOT_FOUND, 1)


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("s3://no-such-bucket-here/x", exits.NO_STORE, "there is no bucket 'no-such-bucket-here'"),
        ("s3://bucket?colour=red", exits.USAGE, "'colour' is not a setting of an S3 URL"),
        ("s3://b/x", exits.USAGE, "is not a bucket's name"),
        ("s3://key:secret@bucket/x", exits.USAGE, "holds no credentials"),
        ("gs://bucket/x", exits.USAGE, "gs:// is not a kind of store"),
    ],
)
def test_places_that_are_none(
    bare: Run,
    moto_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server.endpoint_url)
    for verb in (["ls"], ["put", "-", "x"], ["gc"], ["check"], ["index", "rebuild"]):
        failed = bare("-r", url, *verb)
        assert (failed.code, failed.out, failed.err.count("\n")) == (code, b"", 1)
        assert message in failed.err
        assert "secret" not in failed.err


def test_no_credentials_and_no_server(
    bare: Run, moto_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castore.s3.client.retries.BACKOFF.__class__.wait_s", lambda *_: 0.0)
    down = f"s3://{moto_server.bucket}/x?endpoint_url=http://127.0.0.1:{free_port()}"
    failed = bare("-r", down, "ls")
    assert (failed.code, failed.err.count("\n")) == (exits.FAILURE, 1)
    assert "can't be reached" in failed.err
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    failed = bare("-r", moto_server.url(), "ls")
    assert (failed.code, failed.err.count("\n")) == (exits.DENIED, 1)
    assert "no AWS credentials for s3://" in failed.err


def test_what_is_not_a_store(bare: Run, moto_server: Server) -> None:
    moto_server.client().put_object(Bucket=moto_server.bucket, Key="store/other", Body=b"")
    failed = bare("-r", moto_server.url(), "put", "-", "x", stdin=b"1")
    assert (failed.code, failed.err.count("\n")) == (exits.FAILURE, 1)
    assert "is not empty and not a castore store ('other' is there)" in failed.err


def test_a_local_store_loads_no_boto(tmp_path: Path) -> None:
    program = (
        "import sys; from castore.cli import main\n"
        f"store = ['-r', {str(tmp_path / 'store')!r}]\n"
        f"assert main([*store, 'put', {__file__!r}, 'x']) == 0\n"
        "for verb in (['ls', '-l'], ['stat', 'x'], ['du'], ['stats'], ['get', 'x', '/dev/null'],\n"
        "             ['cp', 'x', 'y'], ['mv', 'y', 'z'], ['rm', 'z'], ['doctor']):\n"
        "    assert main([*store, *verb]) == 0, verb\n"
        "print([m for m in ('boto3', 'botocore') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


VERBS = (
    ["ls"],
    ["stats"],
    ["check"],
    ["check", "--repair", "--yes"],
    ["gc"],
    ["index", "rebuild"],
    ["doctor"],
    ["cat", "x"],
    ["stat", "x"],
    ["du"],
    ["rm", "x"],
    ["mv", "x", "y"],
    ["export", "/", "out"],
    ["put", __file__, "x"],
    ["put", "-R", "folder"],
    ["import", "folder", "p"],
)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb[:2]).replace("/", ""))
def test_no_bucket_and_wrong_credentials_have_codes_of_their_own(
    verb: list[str],
    bare: Run,
    moto_server: Server,
    rclone_server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x")
    nowhere = Server(moto_server.endpoint_url, "no-such-bucket", preconditions=True)
    monkeypatch.setenv("CASTORE_STORE", nowhere.url())
    code, out, err = bare(*verb)
    assert (code, out) == (exits.NO_STORE, b"")
    assert "there is no bucket 'no-such-bucket'" in err
    monkeypatch.setenv("CASTORE_STORE", rclone_server.url())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-key")
    code, out, err = bare(*verb)
    assert (code, out) == (exits.DENIED, b"")
    assert "credentials don't work" in err
    assert "wrong-secret-key" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.plain("bases are read for their deltas as well")
def test_a_repair_reads_the_data_once(
    run: Run, moto_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The check before the question, the repair, and the check after it, all in one command."""
    for name in "abc":
        (tmp_path / name).write_bytes(os.urandom(400_000))
        assert run("put", tmp_path / name, name).code == 0
    fetched: Counter[str] = Counter()
    get = Bucket.get

    def counted(bucket: Bucket, key: str, **options: object) -> object:
        reply = get(bucket, key, **options)  # type: ignore[call-overload]
        fetched[key] += 0 if reply is None else len(reply.body)
        return reply

    with Bucket(moto_server.settings()) as bucket:
        sizes = {entry.key: entry.size for entry in bucket.list(PACKS)}
        damaged = min(sizes)
        raw = bytearray(bucket.get(damaged).body)
        raw[len(raw) // 2] ^= 1
        bucket.put(damaged, bytes(raw), idempotent=True)
        monkeypatch.setattr(Bucket, "get", counted)
        assert run("check", "--repair", "--yes").code == exits.NOT_FOUND  # a chunk is lost
        written = {entry.key: entry.size for entry in bucket.list(PACKS)}.items() - sizes.items()
    assert len(sizes) == 3
    assert written
    for key in sizes.keys() - {damaged}:
        assert sizes[key] <= fetched[key] < sizes[key] + 10_000
    # Checked, copied, and read for what is left; what is damaged is read twice each time.
    assert fetched[damaged] < 3.7 * sizes[damaged]
    for key, size in written:
        assert size <= fetched[key] < size + 10_000
