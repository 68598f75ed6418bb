"""`conducto secrets`: what goes in, and that nothing of it comes out."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipelines import command_lines
from places import ROOT

import conducto as co
from conducto import command, policy

VALUE = "s3kr1t-of-nobody"


@pytest.fixture(autouse=True)
def on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CONDUCTO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONDUCTO_BASE_DIR", str(tmp_path / "base"))


class Run:
    """`run("list")` is (exit code, stdout, stderr)."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
        self.capture = capsys
        self.monkeypatch = monkeypatch

    def __call__(self, *argv: str, stdin: bytes = b"") -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = command.main(["secrets", *argv])
        out, err = self.capture.readouterr()
        assert VALUE not in out + err
        return code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(capsys, monkeypatch)


def test_set_list_delete(run: Run) -> None:
    assert run("list") == (0, "[]\n", "")
    assert run("set", "B", stdin=VALUE.encode()) == (0, "", "")
    assert run("set", "A", "--no-mask", stdin=b"eu-west-1\n") == (0, "", "")
    assert run("set", "--org", "C", stdin=VALUE.encode()) == (0, "", "")
    code, out, _ = run("list")
    assert (code, json.loads(out)) == (
        0,
        [
            {"key": "A", "scope": "user", "mask": False},
            {"key": "B", "scope": "user", "mask": True},
        ],
    )
    assert json.loads(run("list", "--org")[1]) == [{"key": "C", "scope": "org", "mask": True}]
    assert co.api.Secrets().get_user_secrets() == {"A": "eu-west-1", "B": VALUE}
    assert run("delete", "B") == (0, "", "")
    code, out, err = run("delete", "B", "--org")
    assert (code, out) == (1, "")
    assert err == "conducto: there is no secret B (org): nothing was deleted\n"
    assert run("delete", "C", "--org")[0] == 0
    assert set(co.api.Secrets().get_user_secrets(include_org_secrets=True)) == {"A"}
    assert run("set", "D", "--profile=other", stdin=b"x")[0] == 0
    assert co.api.Secrets(profile="other").get_user_secrets() == {"D": "x"}


@pytest.mark.parametrize(
    ("stdin", "value"),
    [
        (b"a\n", "a"),
        (b"a\r\n", "a"),
        (b"a", "a"),
        (b" a \n", " a "),
        (b"-----BEGIN\nab\n-----END\n", "-----BEGIN\nab\n-----END\n"),
        (b"a\n\n", "a\n\n"),
        ("ü".encode(), "ü"),
        (b"x" * 8000 + b"\n", "x" * 8000),
    ],
)
def test_what_is_read(run: Run, stdin: bytes, value: str) -> None:
    assert run("set", "A", stdin=stdin) == (0, "", "")
    assert co.api.Secrets().get_user_secrets() == {"A": value}


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"", "the secret A is empty"),
        (b"\n", "is empty"),
        (VALUE.encode() + b"\xff", "is not UTF-8"),
        (VALUE.encode() * 501, "has more than 8,000 bytes"),
        ("ü".encode() * 4001, "has more than 8,000 bytes"),
        (VALUE.encode() + b"\0", "has a NUL"),
    ],
)
def test_what_is_not_taken(run: Run, stdin: bytes, words: str) -> None:
    code, out, err = run("set", "A", stdin=stdin)
    assert (code, out) == (1, "")
    assert words in err
    assert run("list")[1] == "[]\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["set"],
        ["set", "A", VALUE],
        ["set", "A", f"--value={VALUE}"],
        ["set", "A", "--org", VALUE],
        ["set", "A", f"--org={VALUE}"],
        ["set", "A", f"--mask={VALUE}"],
        ["delete"],
        ["delete", "A", VALUE],
        ["list", VALUE],
        [VALUE],
        [],
    ],
)
def test_usage_repeats_no_argument(run: Run, argv: list[str]) -> None:
    """What follows a name may be a value, in the wrong place."""
    code, out, err = run(*argv, stdin=b"x")
    assert (code, out) == (2, "")
    assert "secrets" in err
    if argv[:1] == ["set"]:
        assert "A value is no argument: it is asked for, or read from stdin" in err


def test_name_that_may_be_a_value(run: Run) -> None:
    code, _, err = run("set", f"A={VALUE}", stdin=b"x")
    assert code == 1
    assert "not repeated here" in err
    assert run("delete", f"A={VALUE}")[0] == 1


def test_help(run: Run) -> None:
    for argv in (["--help"], ["-h"], ["set", "--help"], ["list", "-h"]):
        code, out, _ = run(*argv)
        assert code == 0
        assert "usage: conducto secrets set KEY" in out


def test_stdin_that_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        assert command.main(["secrets", "set", "A"]) == 1
    assert "stdin is closed" in capsys.readouterr().err


def test_on_a_terminal() -> None:
    """It asks, shows nothing of what is typed, and others see nothing of it meanwhile."""
    ours, theirs = pty.openpty()
    main = "import sys; from conducto.command import main; sys.exit(main(['secrets', 'set', 'A']))"
    process = subprocess.Popen(
        [sys.executable, "-c", main], stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while b"A: " not in said:
        said += os.read(ours, 1000)
    time.sleep(0.1)  # it turns echoing off, then asks
    os.write(ours, VALUE.encode())
    time.sleep(0.1)
    listed = command_lines()
    assert b"'secrets', 'set', 'A'" in listed
    assert VALUE.encode() not in listed
    os.write(ours, b"\n")
    try:
        while part := os.read(ours, 1000):
            said += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(30) == 0, said
    assert VALUE.encode() not in said
    assert co.api.Secrets().get_user_secrets() == {"A": VALUE}


def test_it_does_not_ask_in_vain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return VALUE

    asked: list[str] = []
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", ask)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cryptography", None)
        assert command.main(["secrets", "set", "A"]) == 1
    said = capsys.readouterr().err
    assert "pip install 'castore[secrets]'" in said
    assert len(said.splitlines()) == 1
    assert asked == []
    assert command.main(["secrets", "set", "A"]) == 0
    assert asked == ["A: "]
    (tmp_path / "base" / "default" / "secrets").write_bytes(b"not it")
    assert command.main(["secrets", "set", "A"]) == 1
    assert "are damaged" in capsys.readouterr().err
    assert asked == ["A: "]


def test_no_file_has_it(tmp_path: Path) -> None:
    """Nor does a process that died leave one."""
    program = """
import resource
from conducto.command import main
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
main(["secrets", "set", "A"])
print(resource.getrlimit(resource.RLIMIT_CORE)[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input=VALUE, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "0\n"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert not [path for path in files if VALUE.encode() in path.read_bytes()]


def test_the_document(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """What docs/secrets.md says can be typed."""
    text = (ROOT / "docs" / "secrets.md").read_text()
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    assert len(lines) == 9
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] == "conducto":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x")))
            assert (
                command.main([word for word in words[1:] if word not in ("<", "id_ed25519")]) == 0
            )
        else:
            assert words[:4] == ["python", "-P", "-m", "conducto.policy"]
            assert policy.main(words[4:]) == 0
    typed, wrapped = blocks(text, "python")
    co.api.Secrets().put_user_secrets({"SSH_KEY": VALUE}, replace=True)
    exec(typed, {})
    assert co.api.Secrets().get_user_secrets() == {"SSH_KEY": VALUE}
    assert co.api.Secrets().get_org_secrets() == {"DB_PASSWORD": "..."}
    capfdbinary.readouterr()
    wrapped = wrapped.replace('["make", "deploy"]', '["sh", "-c", "echo it is $SSH_KEY"]')
    exec(wrapped, {"co": co, "os": os, "subprocess": subprocess, "sys": sys})
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"it is ***\n"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_nobody_reads_a_policy() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "conducto.policy", "--secrets"],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
