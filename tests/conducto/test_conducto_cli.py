"""The four commands as scripts use them: arguments, output, exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import conducto as co
from castore import __version__
from castore.s3.client.bucket import Bucket
from castore.s3.client.settings import parse_settings
from conducto import cli, context
from conducto.arguments import HelpWanted, Parameter, UsageError, parse

pytest_plugins = ["modes"]
pytestmark = pytest.mark.usefixtures("mode")

local_only = pytest.mark.parametrize("mode", ["local"], indirect=True)
cloud_only = pytest.mark.parametrize("mode", ["cloud"], indirect=True)

ENTRY_POINTS = {
    "data-pipeline": cli.data_pipeline,
    "data-user": cli.data_user,
    "temp-data": cli.temp_data,
    "perm-data": cli.perm_data,
}


class Run:
    """Runs commands in this process: `run("gets", "x")` is (exit code, stdout, stderr)."""

    def __init__(self, capfd: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch):
        self.capture = capfd
        self.monkeypatch = monkeypatch

    def __call__(
        self, *argv: str, which: str = "data-user", stdin: bytes = b""
    ) -> tuple[int, bytes, str]:
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(which, argv)
        out, err = self.capture.readouterr()
        return code, out, err.decode()

    def value(self, *argv: str, which: str = "data-user") -> object:
        """What a command that succeeds prints, which is one line of JSON or nothing."""
        code, out, err = self(*argv, which=which)
        assert (code, err) == (0, "")
        assert out.count(b"\n") <= 1
        return json.loads(out) if out else None

    def failure(self, *argv: str, code: int = 1, which: str = "data-user") -> str:
        """The one line that a command that fails prints."""
        found, out, err = self(*argv, which=which)
        assert (found, out) == (code, b"")
        assert err.startswith(f"conducto-{which}: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err.partition(": ")[2][:-1]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(capfdbinary, monkeypatch)


class TestCommands:
    @local_only
    def test_errors_of_files_are_said_as_castore_says_them(self, run: Run, tmp_path: Path) -> None:
        assert run.failure("put", "x", "missing") == "missing: No such file or directory"
        assert run.failure("put", "x", str(tmp_path)) == f"{tmp_path}: is a folder, not a file"
        assert run.failure("gets", "x") == "no object is named 'x'"

    def test_puts_and_gets_raw_bytes(self, run: Run) -> None:
        content = bytes(range(256)) * 100
        assert run("puts", "/raw/all", stdin=content) == (0, b"", "")
        assert run("gets", "/raw/all") == (0, content, "")
        assert co.data.user.gets("raw/all") == content

    @pytest.mark.parametrize(
        "given",
        [
            ("--byte_range=2,5",),
            ("--byte-range=2,5",),
            ("--byte_range", "2,5"),
            ("--byte-range", "2,5"),
            ("2,5",),
            ("--byte_range=9,9", "--byte_range=2,5"),
        ],
    )
    def test_byte_ranges(self, run: Run, given: tuple[str, ...]) -> None:
        co.data.user.puts("x", b"0123456789")
        assert run("gets", "x", *given) == (0, b"234", "")
        assert run("gets", "--name=x", "--byte_range=8,99") == (0, b"89", "")

    @pytest.mark.parametrize(
        "given", [("x",), ("--name", "x"), ("--name=x",), ("--no-local", "--local", "x"), ("/x",)]
    )
    def test_the_name_in_every_spelling(self, run: Run, given: tuple[str, ...], mode: str) -> None:
        if mode == "cloud" and "--local" in given:  # the last one counts
            given = (given[1], given[0], *given[2:])
        co.data.user.puts("x", b"12")
        assert run.value("size", *given) == 2
        assert run.value("exists", *given) is True

    def test_put_and_get(self, run: Run, tmp_path: Path) -> None:
        script = tmp_path / "tool"
        script.write_bytes(b"#!/bin/sh\n")
        script.chmod(0o755)
        assert run.value("put", "thepkg", str(script)) is None
        assert run.value("put", "--file", str(script), "--name=other") is None
        assert run.value("put", f"--file={script}", "third", "--skip-cleanup") is None
        assert run.value("list", "") == ["other", "thepkg", "third"]
        assert run.value("get", "--file", str(tmp_path / "out"), "thepkg") is None
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755

    def test_list_as_R_scripts_read_it(self, run: Run) -> None:
        for name in ("results/a", "results/b", "é"):
            co.data.user.puts(name, b"")
        code, out, _ = run("list", "--prefix=/results")
        assert (code, out) == (0, b'["/results/a", "/results/b"]\n')
        assert run.value("list", "none") == []
        assert run("list", "é")[1] == b'["\\u00e9"]\n'
        assert len(run.value("list")) == 3  # type: ignore[arg-type]

    def test_exists_says_false_and_succeeds(self, run: Run) -> None:
        assert run("exists", "x") == (0, b"false\n", "")
        co.data.user.puts("x/y", b"")
        assert run("exists", "x") == (0, b"true\n", "")

    @pytest.mark.parametrize(
        "flag", ["--recursive", "--recursive=true", "--recursive=1", "--recursive=True", "true"]
    )
    def test_delete_recursive(self, run: Run, flag: str) -> None:
        co.data.user.puts("d/x", b"")
        assert run.value("delete", "d", flag) is None
        assert co.data.user.list("") == []

    @pytest.mark.parametrize(
        "flags", [[], ["--no-recursive"], ["--recursive=false"], ["--recursive", "--no-recursive"]]
    )
    def test_delete_not_recursive(self, run: Run, flags: list[str]) -> None:
        co.data.user.puts("d/x", b"")
        assert "Is a directory" in run.failure("delete", "d", *flags)
        assert co.data.user.list("") == ["d/x"]

    def test_url(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        url = run.value("url", "--name", "image 1.png", which="data-pipeline")
        assert url == "/gw/manager/data/p1/pipeline/image%201.png"
        monkeypatch.setenv("CONDUCTO_AUTO_URL", "https://app.example")
        for flag in ("--no-path_only", "--no-path-only", "--path_only=false", "false"):
            assert run.value("url", "x", flag) == "https://app.example/gw/manager/data/p1/user/x"

    def test_caches(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        (tmp_path / "d/f").write_bytes(b"f")
        assert run.value("cache-exists", "n", "1") is False
        assert run.value("save-cache", "n", "1", str(tmp_path / "d")) is None
        assert (
            run.value("save_cache", "--name=n", "--checksum=2", f"--save-dir={tmp_path}/d") is None
        )
        assert run.value("cache_exists", "n", "--checksum", "1") is True
        assert run.value("restore-cache", "n", "2", "--restore_dir", str(tmp_path / "o")) is None
        assert (tmp_path / "o/d/f").read_bytes() == b"f"
        assert run.value("clear-cache", "n", "1") is None
        assert run.value("list") == ["conducto-cache/n/2.tar.gz"]
        assert run.value("clear-cache", "n") is None
        assert run.value("list") == []
        assert run.failure("restore-cache", "n", "1", str(tmp_path)) == (
            "Cache not found: 'conducto-cache/n/1.tar.gz'"
        )

    def test_archive(self, run: Run) -> None:
        co.data.pipeline.puts("x", b"")
        assert "id missing" in run.failure("archive", code=2, which="data-pipeline")
        assert run.value("archive", "--id", "p1", which="data-pipeline") == 1
        assert "not one of the commands" in run.failure("archive", "--id", "p1", code=2)


class TestWhere:
    def test_each_command_has_its_scope(self, run: Run) -> None:
        for which in ENTRY_POINTS:
            assert run("puts", which, which=which, stdin=which.encode()) == (0, b"", "")
        assert co.data.pipeline.list("") == ["data-pipeline", "temp-data"]
        assert co.data.user.list("") == ["data-user", "perm-data"]

    @pytest.mark.parametrize("which", ENTRY_POINTS)
    def test_entry_points(self, run: Run, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["anything", "exists", "x"])
        assert ENTRY_POINTS[which]() == 0
        assert run.capture.readouterr().out == b"false\n"

    def test_id(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        co.data.pipeline.puts("x", b"")
        for given in (("--id", "p2"), ("--id=p2",)):
            assert run.value("exists", "x", *given, which="data-pipeline") is False
        monkeypatch.delenv("CONDUCTO_PIPELINE_ID")
        assert run.value("exists", "x", "--id", "p1", which="data-pipeline") is True
        message = run.failure("exists", "x", which="data-pipeline")
        assert "CONDUCTO_PIPELINE_ID" in message
        assert "--id" in message
        assert "can't be a pipeline id" in run.failure(
            "exists", "x", "--id=../p1", which="data-pipeline"
        )

    @local_only
    def test_profile(self, run: Run, mode: str) -> None:
        co.data.user.bound(profile="work").puts("x", b"")
        assert run.value("exists", "x") is False
        assert run.value("exists", "x", "--profile", "work") is True

    def test_local(self, run: Run, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        co.data.user.puts("x", b"")
        assert run.value("exists", "x") is True
        assert run.value("exists", "x", "--local") is (mode == "local")
        monkeypatch.delenv("CONDUCTO_S3_BUCKET", raising=False)
        assert "CONDUCTO_S3_BUCKET" in run.failure("exists", "x", "--no-local")
        monkeypatch.setenv("CONDUCTO_EXECUTION_ENV", "worker_cloud")
        assert "CONDUCTO_S3_BUCKET" in run.failure("exists", "x")

    @cloud_only
    def test_what_the_cloud_says_is_one_line(
        self, run: Run, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CONDUCTO_S3_BUCKET", "no-such-bucket")
        assert "no bucket 'no-such-bucket'" in run.failure("exists", "x")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        assert "no AWS credentials" in run.failure("exists", "x")
        monkeypatch.delenv("CONDUCTO_IDENTITY_ID")
        assert "CONDUCTO_IDENTITY_ID is not set" in run.failure("exists", "x")


class TestFailures:
    def test_missing(self, run: Run, tmp_path: Path) -> None:
        assert run.failure("gets", "/gone") == "no object is named '/gone'"
        assert run.failure("size", "gone") == "no object is named 'gone'"
        assert run.failure("delete", "gone") == "no object is named 'gone'"
        assert "no-such-file" in run.failure("put", "x", str(tmp_path / "no-such-file"))

    def test_names_and_ranges(self, run: Run) -> None:
        co.data.user.puts("x", b"0123")
        assert "'..' component" in run.failure("gets", "../x")
        for given in ("3,1", "1", "1,2,3", "-1,2"):
            assert "range" in run.failure("gets", "x", f"--byte_range={given}")

    def test_one_line_whatever_happens(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise ZeroDivisionError("two\nlines")

        monkeypatch.setattr(co.data.user, "size", fail)
        assert run.failure("size", "x") == "ZeroDivisionError: two lines"

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ([], "no command given: one of delete, exists, get"),
            (["frobnicate"], "'frobnicate' is not one of the commands delete, exists"),
            (["--name=x", "gets"], "'--name=x' is not one of the commands"),
            (["gets"], "gets: name missing"),
            (["put", "--file=y"], "put: name missing"),
            (["save-cache"], "save-cache: name and checksum and save_dir missing"),
            (["gets", "x", "1,2", "y"], "gets: unexpected argument 'y'"),
            (["gets", "x", "--nam=y"], "gets: unknown option --nam"),
            (["gets", "x", "--no-name"], "gets: unknown option --no-name"),
            (["gets", "x", "--name=y"], "gets: --byte_range is BEGIN,END"),
            (["size", "x", "--name=y"], "size: unexpected argument 'x'"),
            (["gets", "--name"], "gets: --name needs a value"),
            (["gets", "x", "--byte_range=a,b"], "BEGIN,END (two integers), not 'a,b'"),
            (["gets", "x", "--byte_range="], "BEGIN,END (two integers), not ''"),
            (["gets", "x", "--byte_range=1.0,2"], "BEGIN,END (two integers), not '1.0,2'"),
            (["delete", "x", "--recursive=perhaps"], "is true or false, not 'perhaps'"),
            (["delete", "x", "--no-recursive=1"], "delete: --no-recursive takes no value"),
            (["delete", "x", "perhaps"], "is true or false, not 'perhaps'"),
        ],
    )
    def test_usage(self, run: Run, argv: list[str], message: str) -> None:
        found = run.failure(*argv, code=2)
        assert message in found
        assert "--help)" in found


class TestHelp:
    @pytest.mark.parametrize("which", ENTRY_POINTS)
    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_all(self, run: Run, which: str, flag: str) -> None:
        code, out, err = run(flag, which=which)
        assert (code, err) == (0, "")
        text = out.decode()
        assert text.startswith(f"usage: conducto-{which} COMMAND")
        for name, command in cli.COMMANDS.items():
            assert f"  {name} " in text
            assert command.help in text
        assert ("archive" in text) == (which in ("data-pipeline", "temp-data"))
        assert all(len(line) <= 110 for line in text.splitlines())

    @pytest.mark.parametrize("name", [*cli.COMMANDS, "archive"])
    def test_each(self, run: Run, name: str) -> None:
        code, out, err = run(name, "ignored", "--help", which="data-pipeline")
        assert (code, err) == (0, "")
        text = out.decode()
        assert text.startswith(f"usage: conducto-data-pipeline {name}")
        for option in ("--id ID", "--local | --no-local", "--profile"):
            assert option in text
        if name in cli.COMMANDS:
            for parameter in cli.COMMANDS[name].parameters:
                assert f"  --{parameter.name}" in text

    def test_archive_says_that_the_environment_names_no_pipeline_for_it(self, run: Run) -> None:
        _, out, _ = run("archive", "--help", which="data-pipeline")
        usage, *_ = out.decode().splitlines()
        assert " archive --id ID [" in usage
        assert "else CONDUCTO_PIPELINE_ID" not in out.decode()
        _, out, _ = run("puts", "--help", which="data-pipeline")
        assert "else CONDUCTO_PIPELINE_ID" in out.decode()

    def test_version(self, run: Run) -> None:
        assert run("--version") == (0, f"conducto-data-user {__version__}\n".encode(), "")


class TestArguments:
    PARAMETERS = (Parameter("a_b", ""), Parameter("c", "", required=False))

    def test_after_two_dashes_everything_is_positional(self) -> None:
        assert parse(self.PARAMETERS, ["--", "--a-b", "-h"]) == {"a_b": "--a-b", "c": "-h"}

    def test_values_that_look_like_options(self) -> None:
        assert parse(self.PARAMETERS, ["--a_b", "--c", "-x"]) == {"a_b": "--c", "c": "-x"}
        assert parse(self.PARAMETERS, ["--a-b=--c=d"]) == {"a_b": "--c=d"}
        assert parse(self.PARAMETERS, ["--a_b="]) == {"a_b": ""}

    def test_help_and_errors(self) -> None:
        with pytest.raises(HelpWanted):
            parse(self.PARAMETERS, ["x", "-h"])
        with pytest.raises(UsageError, match="a_b missing"):
            parse(self.PARAMETERS, ["--c=1"])


def command(*argv: str, which: str = "data-user") -> list[str]:
    return [sys.executable, "-m", "conducto.cli", which, *argv]


class TestProcesses:
    def test_a_shell_script(self) -> None:
        tool = " ".join(command(which="data-pipeline"))
        script = f"""
            set -euo pipefail
            printf '10.0.0.1' | {tool} puts /flask/ip
            FLASK_IP=$({tool} gets /flask/ip)
            test "$FLASK_IP" = 10.0.0.1
            {tool} list --prefix=/flask | tee /dev/stderr
        """
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout == '["/flask/ip"]\n'

    @local_only
    def test_which_command(self, mode: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "conducto.cli", "x"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    @local_only
    def test_a_reader_that_goes_away(
        self, mode: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
        co.data.user.puts("x", os.urandom(4 << 20))
        context.close_stores()
        tool = " ".join(command("gets", "x"))
        for options in ("", " --byte_range=0,4000000"):
            done = subprocess.run(
                ["bash", "-c", f"{tool}{options} | head -c 3 | wc -c; echo ${{PIPESTATUS[0]}}"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.split() == ["3", "141"]
            assert done.stderr == ""

    def test_large_outputs_are_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content = os.urandom(4 << 20)
        co.data.user.puts("x", content)
        context.close_stores()
        monkeypatch.setenv("PYTHONUNBUFFERED", "1")
        for options in ((), ("--byte_range=0,4194304",)):
            slow = f"{' '.join(command('gets', 'x', *options))} | (sleep 0.2; cat)"
            done = subprocess.run(["bash", "-c", slow], capture_output=True, check=True)
            assert done.stdout == content

    def test_interrupt(self) -> None:
        process = subprocess.Popen(
            command("puts", "x"), stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(b"x" * 200_000)
        process.stdin.flush()  # more than a pipe holds: it has been reading for a while
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (130, b"")
        assert not co.data.user.exists("x")

    @pytest.mark.parametrize("size", [100, 300_000])  # inline; in chunks
    def test_a_script_that_closes_nothing(self, mode: str, size: int) -> None:
        """Its stores are closed at the end of the interpreter, as they would be before."""
        content = bytes(range(100)) * (size // 100)
        script = f'import conducto as co; co.data.user.puts("x", {content[:100]!r} * {size // 100})'
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert co.data.user.gets("x") == content
        if mode == "cloud":
            with Bucket(parse_settings(context.store_url())) as bucket:
                assert [entry.key for entry in bucket.list("pins/")] == []
                assert len(list(bucket.list("hints/"))) == (size > 64 << 10)

    @local_only
    def test_closed_streams(self, mode: str) -> None:
        co.data.user.puts("x", b"1")
        context.close_stores()
        for arguments, message in [(["gets", "x"], "stdout is closed"), (["puts", "x"], "stdin")]:
            closed = " ".join(command(*arguments)) + " <&- >&-"
            done = subprocess.run(["bash", "-c", closed], capture_output=True, check=False)
            assert done.returncode == 1
            assert done.stderr.count(b"\n") == 1
            assert message in done.stderr.decode()

    @local_only
    @pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
    def test_an_error_that_cannot_be_told_has_its_exit_code(self, mode: str, stderr: str) -> None:
        """And is no part of what is printed, which may be an object's bytes."""
        for arguments, code in [(["gets", "none"], 1), (["gets"], 2)]:
            line = f"{' '.join(command(*arguments))} {stderr}"
            done = subprocess.run(["bash", "-c", line], stdout=subprocess.PIPE, check=False)
            assert (done.returncode, done.stdout) == (code, b"")

    @local_only
    def test_stdout_on_a_full_disk(self, mode: str) -> None:
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full")
        co.data.user.puts("x", b"1" * 100)
        context.close_stores()
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                command("gets", "x"), stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert done.returncode == 1
        assert done.stderr.count(b"\n") == 1
        assert b"No space left" in done.stderr
