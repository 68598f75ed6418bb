"""What programs print is masked, whatever it comes in."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
import subprocess
import sys
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conducto.secrets import Masker
from conducto.secrets.forms import encoded_forms, printed_forms
from conducto.secrets.masker import WRAPPED_CHARS_MIN

PEM = "-----BEGIN KEY-----\nq83vEjRWeJASNFZ4kBI0VniQEjRWeJASNFZ4\nAAECAwQFBgc=\n-----END KEY-----\n"
ODD = "p@ss 'w0rd\" <&> \\ %ü\tß/+="


def masked(values: list[str], text: str) -> str:
    masker = Masker(values)
    return (masker.feed(text.encode()) + masker.flush()).decode()


def test_every_length() -> None:
    assert masked(["x"], "a x\nxx\n") == "a ***\n***\n"
    assert masked(["xy", "yz"], "wxyz xy") == "w*** ***"  # they overlap: nothing is left of either
    assert masked(["hunter2", "hunter2000"], "hunter2000!") == "***!"
    assert masked(["", "b"], "abc") == "a***c"
    long = "0123456789" * 800
    assert masked([long], f"<{long}>") == "<***>"
    assert masked([], "all") == "all"


@pytest.mark.parametrize("value", ["hunter2", ODD, PEM, "correct horse battery staple"])
@pytest.mark.parametrize(
    "printed",
    [
        str,
        json.dumps,
        lambda value: json.dumps({"key": value}, ensure_ascii=False),
        repr,
        shlex.quote,
        lambda value: "'" + value.replace("'", "'\\''") + "'",
        html.escape,
        lambda value: html.escape(value, quote=False),
        quote,
        quote_plus,
        lambda value: re.sub("%..", lambda escape: escape[0].lower(), quote(value, safe="")),
        lambda value: base64.b64encode(value.encode()).decode(),
        lambda value: base64.urlsafe_b64encode(value.encode()).decode(),
        lambda value: base64.b64encode(f"user:{value}".encode()).decode(),
        lambda value: base64.b64encode(f"us:{value}@host".encode()).decode(),
        lambda value: base64.b64encode(f"use:{value}\n".encode()).decode(),
        lambda value: base64.encodebytes(b"a line of its own " * 9 + value.encode()).decode(),
        lambda value: base64.encodebytes(value.encode() * 9).decode().replace("\n", "\r\n    "),
        lambda value: value.encode().hex(),
        lambda value: value.encode().hex().upper(),
        lambda value: value.replace("\n", "\r\n"),
        lambda value: " ".join(value.split()),
        lambda value: "\n".join(f"    {line}" for line in value.splitlines()),
    ],
)
def test_however_it_is_printed(value: str, printed: object) -> None:
    """Nothing is left of which the secret could be made: of a secret with no odd characters not
    even four of the characters that it is made of in that form."""
    assert callable(printed)
    text = printed(value)
    out = masked([value], f"it is <{text}>!")
    assert "***" in out
    lines = [line.strip() for line in value.splitlines() if len(line.strip()) >= 8]
    for found in (value, *lines, value.encode().hex()):
        assert found not in out
    inner = base64.b64encode(value.encode()).decode()[:-4]
    assert inner not in out.replace("\n", "")


def test_by_the_program_itself() -> None:
    """What `base64` and a shell's trace print."""
    value = "it's " + "a-long-secret" * 9
    script = 'set -x; echo "$S" | base64; : "$S"; printf %s "$S" | base64 -w 0; "$PYTHON" -c "$HEX"'
    hexadecimal = (
        "import os, textwrap; print(*textwrap.wrap(os.environb[b'S'].hex(), 60), sep='\\n')"
    )
    env = {"S": value, "PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "HEX": hexadecimal}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True)
    assert done.returncode == 0
    for stream in (done.stdout, done.stderr):
        masker = Masker([value])
        out = masker.feed(stream) + masker.flush()
        assert b"***" in out
        assert b"secret" not in out
        assert base64.b64encode(value.encode())[12:40] not in out.replace(b"\n", b"")
        assert b"a-long".hex().encode() not in out.replace(b"\n", b"")


@pytest.mark.parametrize("value", [ODD, PEM, "it's\ntwo lines\tand $a `b`", "a!b {c} *?[d]"])
def test_by_a_shell(value: str) -> None:
    """In each way in which bash quotes it."""
    script = 'export -p; set; declare -p S; printf %q "$S"; set -x; : "$S" "<$S>"'
    done = subprocess.run(
        ["bash", "-c", script],
        env={"S": value, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
    )
    masker = Masker([value])
    out = masker.feed(done.stdout + done.stderr) + masker.flush()
    assert out.count(b"***") >= 6
    for word in ("w0rd", "q83v", "two", "lines", "{c", "[d"):
        if word in value:
            assert word.encode() not in out


def test_over_the_border_of_blocks() -> None:
    masker = Masker(["hunter2", PEM])
    out = [masker.feed(bytes((byte,))) for byte in f"say hunter2 or\n{PEM}bye".encode()]
    assert b"".join(out) + masker.flush() == b"say *** or\n***bye"
    # A mask is given out once, and no part of what it stands for.
    masker = Masker(["abc", "cde"])
    assert masker.feed(b"xabc") == b"x***"
    assert masker.feed(b"de") == b""
    assert masker.feed(b".") == b"."
    masker = Masker(["abc", "cde"])
    assert [masker.feed(b"xabc"), masker.feed(b"dx"), masker.flush()] == [b"x***", b"dx", b""]


def test_lines_come_when_they_are_printed() -> None:
    masker = Masker(["hunter2", PEM, ODD])
    for line in (b"one\n", b"two hunter\n", b"-----BEGIN\n", b"java aHV\n", b"Password? "):
        assert masker.feed(line) == line
    assert masker.feed(b"h") == b""  # it may become the secret
    assert masker.feed(b"i\n") == b"hi\n"
    assert masker.feed(b"hunter") == b""
    assert masker.flush() == b"hunter"
    assert masker.feed(b"2!") == b"2!"  # another stream


@pytest.mark.parametrize("value", [ODD, PEM, "hunter2", "hunter2-hunter2"])
def test_a_stream_that_was_cut_within_a_secret_does_not_show_the_half_of_it(value: str) -> None:
    for raw in (value.encode(), base64.b64encode(value.encode())):
        for end in range(1, len(raw)):
            masker = Masker([value])
            out = masker.feed(b"it is " + raw[:end]) + masker.flush(is_cut=True)
            assert not any(raw[at : at + 8] in out for at in range(len(raw) - 8)), (end, out)
            if end < 8:
                assert out in (b"it is " + raw[:end], b"it is ***")  # which is a short secret
            assert masker.feed(b"x") + masker.flush() == b"x"


def test_nothing_is_held_for_ever() -> None:
    masker = Masker(["s" * 5000])
    assert masker.feed(b"s" * 4000) == b""
    assert masker.feed(b"\n" * 4000) == b"s" * 4000 + b"\n" * 4000
    masker = Masker([PEM * 20])
    start = base64.b64encode((PEM * 20).encode())[:60]
    masker.feed(start + b"\n")
    assert masker.feed(b"\n" * 100_000)[:60] == start


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(st.text("ab\n'", min_size=1, max_size=6), min_size=1, max_size=4),
    text=st.text("ab\n' \r", max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    is_long=st.booleans(),
)
@example(values=["abab"], text="abababab", cuts=[3, 5], is_long=False)
def test_output_does_not_depend_on_blocks(
    values: list[str], text: str, cuts: list[int], is_long: bool
) -> None:
    """Nor does it where so much is around it that secrets are looked for another way."""
    before = b"." * 20_000 * is_long
    raw = before + text.encode()
    cuts = [len(before) + cut for cut in cuts]
    assert fed(values, raw, cuts) == before + naively(values, text.encode())


@settings(max_examples=150, deadline=None)
@given(
    value=st.text("ab\n/+~", min_size=12, max_size=60),
    before=st.text("ab", max_size=5),
    width=st.integers(2, 40),
    newline=st.sampled_from(["\n", "\r\n", "\n  ", "\n\n"]),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    is_long=st.booleans(),
)
def test_broken_lines_do_not_depend_on_blocks(
    value: str, before: str, width: int, newline: str, cuts: list[int], is_long: bool
) -> None:
    blank = b"." * 20_000 * is_long
    text = base64.b64encode((before + value + before).encode()).decode()
    raw = newline.join(text[at : at + width] for at in range(0, len(text), width)).encode()
    out = fed([value], blank + raw, [len(blank) + cut for cut in cuts])
    assert out == blank + naively([value], raw)
    if width >= 8 and newline != "\n\n":
        assert b"***" in out


def fed(values: list[str], raw: bytes, cuts: list[int]) -> bytes:
    masker, at, out = Masker(values), 0, b""
    for cut in [*sorted(cuts), len(raw)]:
        out += masker.feed(raw[at:cut])
        at = max(at, cut)
    return out + masker.flush()


def naively(values: list[str], raw: bytes) -> bytes:
    covered = bytearray(len(raw))
    for value in values:
        encoded = encoded_forms(value)
        for form in printed_forms(value) | encoded:
            broken = form in encoded and len(form) >= WRAPPED_CHARS_MIN
            for pattern in _broken(form) if broken else [re.escape(form)]:
                for found in re.finditer(b"(?=(%b))" % pattern, raw, re.DOTALL):
                    covered[found.start(1) : found.end(1)] = b"\1" * len(found[1])
    out = b""
    for at, byte in enumerate(raw):
        if not covered[at]:
            out += bytes((byte,))
        elif not at or not covered[at - 1]:
            out += b"***"
    return out


def _broken(form: bytes) -> list[bytes]:
    """The form, or all but its first up to three letters, with breaks behind four of them."""
    line_break = rb"(?:\r?\n[ \t]{0,16}(?![\r\n]))?"
    letters = [re.escape(bytes((letter,))) for letter in form]
    return [
        b"".join(letters[skipped : skipped + 4])
        + b"".join(line_break + x for x in letters[skipped + 4 :])
        for skipped in range(4)
    ]


def test_it_is_quick() -> None:
    """A log goes through at megabytes a second, and a line at a time in microseconds, however many
    secrets there are."""
    masker = Masker([hashlib.sha256(b"%d" % n).hexdigest() for n in range(200)])
    lines = [b"%06d: a line of some program's log, as it is\n" % n for n in range(1400)]
    block = b"".join(lines)
    begun = time.process_time()
    for _ in range(16):
        masker.feed(block)
    assert time.process_time() - begun < 4  # 1 MB
    begun = time.process_time()
    assert b"".join(map(masker.another().feed, lines)) == block
    assert time.process_time() - begun < 0.4
    assert masker.another().feed(hashlib.sha256(b"7").hexdigest().encode()) == b"***"
    assert hashlib.sha256(b"7").hexdigest()[:8] not in repr(masker)


@pytest.mark.parametrize(("piece", "size"), [(1 << 16, 2 << 20), (100, 60_000)])
def test_it_is_quick_where_all_that_is_printed_begins_like_a_secret(piece: int, size: int) -> None:
    """What is held back may be long, and comes to be so a little at a time."""
    masker = Masker(["a" * 5000 + "b", "\0" * 60 + "c"])
    begun = time.process_time()
    for letter in (b"a", b"A"):
        for _ in range(0, size, piece):
            masker.feed(letter * piece)
    assert time.process_time() - begun < 4
