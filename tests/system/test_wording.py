"""Messages that count say it rightly of one: "1 chunk", and not "1 chunks"."""

from __future__ import annotations

import ast
import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from places import ROOT

from castore.check import findings
from castore.check.findings import Findings
from castore.check.objects import manifest_faults
from castore.check.plan import plan
from castore.cli import backups, check, demo, gc, get, ls
from castore.cli.exits import Failure
from castore.demo import DemoReport, PutResult, ReadResult, corpus
from castore.format.index import Record
from castore.format.journal import Unclaimed
from castore.format.segment import SegmentBuilder
from castore.local.journal.scan import JournalReading
from castore.local.journal.state import JournalState
from castore.local.meta import TOTALS, meta_faults
from castore.model import Location, ObjectInfo
from castore.s3.client.http import Broken, read_body
from castore.stream.reports import CheckReport, GcReport, Problem, RebuildReport
from castore.stream.writer import _cut_short
from castore.wording import counted
from conducto.nodes.values import from_text

UNINFLECTED = re.compile(
    r" ((condemned|damaged|intact|more|new|small|stored|unfinished) )?"
    r"(attempts|bases|bytes|chunks|elements|extents|files|forms|frames|hints|manifests|names|"
    r"objects|packs|pages|parts|pieces|pins|ranges|requests|rows|segments|sessions|times|tries)\b"
)
# Whose number is never one.
MANY = {
    ("castore/model.py", "len(encoded)"),  # too many
    ("castore/system/lmdb_pages.py", "size"),  # a large value
    ("castore/testing/changes.py", "len(self)"),  # what a test prints
    ("castore/local/groups.py", "len(pack_ids)"),  # callers never see it
    ("castore/s3/client/http.py", "length"),  # more than are taken
    ("castore/s3/check/source.py", "end"),  # of a manifest
    ("castore/local/check/scan.py", "durable"),  # a pack begins with 64
    ("castore/local/journal/state.py", "self.unclaimed.stored_bytes"),  # a frame with 32
    ("castore/system/lmdb_pages.py", "again.size"),  # it has its meta pages
    ("conducto/tar.py", "header.size"),  # too many
    ("conducto/names.py", "size"),  # too many
    ("conducto/secrets/masker.py", "self._forms.count"),  # a repr
}


def messages() -> Iterator[tuple[str, str, str]]:
    """(module, what is counted, the text behind it) of each number in a text; what says of bytes
    why they do not decode is not among them: it has what they claim."""
    for path in sorted([*ROOT.glob("castore/**/*.py"), *ROOT.glob("conducto/**/*.py")]):
        tree = ast.parse(path.read_text())
        undecoded = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.Raise) and "FormatError" in ast.unparse(node)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr) and id(node) not in undecoded:
                for value, text in zip(node.values, node.values[1:], strict=False):
                    if (
                        isinstance(value, ast.FormattedValue)
                        and value.conversion != ord("r")
                        and isinstance(text, ast.Constant)
                    ):
                        yield (
                            str(path.relative_to(ROOT)),
                            ast.unparse(value.value),
                            str(text.value),
                        )


def test_all_that_is_counted_is_said_by_counted() -> None:
    found = list(messages())
    assert len(found) > 500
    wrong = {
        (module, number): text
        for module, number, text in found
        if UNINFLECTED.match(text) and not re.search(r"\b_?[A-Z_]+$|_max$|^counted\(", number)
    }
    assert {place: text for place, text in wrong.items() if place not in MANY} == {}
    assert wrong.keys() >= MANY, "and nothing is let off for nothing"


def test_counted() -> None:
    assert [counted(n, "name") for n in (0, 1, 2000)] == ["0 names", "1 name", "2,000 names"]
    assert [counted(n, "batch", "batches") for n in (1, 2)] == ["1 batch", "2 batches"]


@pytest.mark.parametrize(
    ("chunks", "said"), [(1, "in 1 chunk that"), (2000, "in 2,000 chunks that")]
)
def test_what_a_collection_refuses(chunks: int, said: str) -> None:
    assert said in JournalState(JournalReading(), [], False, Unclaimed(chunks, 50)).refusal


def test_names_of_one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "NAMES_MAX", 1)
    found = Findings({})
    for name, said in [("a", "missing"), ("b", "(1 more name)"), ("c", "(2 more names)")]:
        found.add_missing_pack(b"p" * 16, name)
        [problem] = found.problems()
        assert problem.what.endswith(said)


def test_an_object_of_one_byte_too_few() -> None:
    segment = SegmentBuilder(0)
    segment.append(1, b"c" * 16, Location(b"p" * 16, 64, 33))
    record = Record(2, 0, 0o644, b"e" * 16, 33, 2, 7)
    *_, fault = manifest_faults(record, [segment.encode(7)], {}, 0)
    assert fault.what == "its segments have 1 byte in 1 chunk, not 2 in 2"


@pytest.mark.parametrize(("number", "s"), [(1, ""), (2, "s")])
def test_what_a_repair_would_do(number: int, s: str) -> None:
    kinds = ("chunk row", "segment", "pack row", "meta", "pin")
    report = CheckReport([Problem(kind, "corrupt", "") for kind in kinds] * number)
    steps = plan(report)
    for step, thing in zip(steps, ("row", "segment", "row", "row", "pin"), strict=True):
        assert re.search(rf"\b{number} {thing}{s}\b", step)


@pytest.mark.parametrize(
    ("number", "garbage", "read", "more"),
    [
        (1, "1 batch, 1 pin;", "1 frame, of which 1 was read", "and 1 more name\n"),
        (2, "2 batches, 2 pins;", "2 frames, of which 2 were read", "and 2 more names\n"),
    ],
)
def test_what_a_check_found(
    number: int, garbage: str, read: str, more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tuple(str(i) for i in range(check.NAMES_SHOWN + number))
    report = CheckReport([Problem("pack", "missing", "it is missing", names)])
    report.frames = report.read_frames = number
    report.garbage = {"batches": number, "pins": number}
    check._print(report, Namespace(json=False, verbose=False))
    out = capsys.readouterr().out
    assert garbage in out
    assert read in out
    assert more in out


def test_what_a_collection_did() -> None:
    for number, packs, requests in [
        (1, "pack, 5 B", "1 request "),
        (2, "packs, 5 B", "2 requests "),
    ]:
        report = GcReport(False, packs_condemned=number, bytes_condemned=5, repack_requests=number)
        assert ("condemned", str(number), packs) in gc._rows(report)
        assert f"for {requests}" in gc._cost(report)


def test_what_a_rebuild_did(capsys: pytest.CaptureFixture[str]) -> None:
    for number, said in [(1, "1 part of objects led"), (2, "2 parts of objects led")]:
        backups._print(RebuildReport(extents_moved=number), Namespace(json=False, verbose=False))
        assert said in capsys.readouterr().out


def test_an_object_of_one_byte() -> None:
    info = ObjectInfo("a", 1, 0, 0o644, "", 1, 2, 1)
    assert ("size", "1 byte") in ls._facts(info)
    assert ("stored", "2 bytes in 1 chunk, 1 of them a delta when it was put") in ls._facts(info)


def test_a_range_that_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty:
        info = SimpleNamespace(size=9)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def seek(self, at: int) -> None:
            pass

        def read(self, size: int) -> bytes:
            return b""

    store: Any = SimpleNamespace(open=lambda name, mode: Empty())
    monkeypatch.setattr(get, "stdout", lambda: SimpleNamespace(buffer=None))
    for begin, said in [(8, "a ended 1 byte early"), (7, "a ended 2 bytes early")]:
        with pytest.raises(Failure, match=said):
            get._copy_range(store, "a", begin, None)


def test_a_row_of_one_byte() -> None:
    for value, said in [(b"1", "has 1 byte"), (b"12", "has 2 bytes")]:
        assert list(meta_faults([(TOTALS, value)], b"")) == [(TOTALS, said)]


def test_a_file_of_one_byte() -> None:
    assert "of its 1 byte while" in str(_cut_short("a", 1))
    assert "of its 6,291,456 bytes while" in str(_cut_short("a", 6 << 20))


def test_a_reply_of_one_byte() -> None:
    for length, said in [("1", "0 of 1 byte$"), ("2", "0 of 2 bytes$")]:
        raw = SimpleNamespace(read=lambda *_, **__: b"", close=lambda: None)
        with pytest.raises(Broken, match=said):
            read_body(raw, {"content-length": length}, 9)


def test_files_that_the_demo_leaves_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"123")
    assert "1 file left out" in corpus.choose_corpus(str(tmp_path), bytes_max=6).note
    assert "2 files left out" in corpus.choose_corpus(str(tmp_path), bytes_max=3).note


def test_a_tuple_of_another_length() -> None:
    with pytest.raises(ValueError, match="it has the length 1, and not 2"):
        from_text("1", tuple[int, int])


def test_what_the_demo_did(capsys: pytest.CaptureFixture[str]) -> None:
    for number, said in [
        (1, ("Of its 1 new piece 1 is stored as its", "1 range, 1 file;")),
        (2, ("Of its 2 new pieces 2 are stored as their", "2 ranges, 2 files;")),
    ]:
        put = PutResult(*[number] * len(fields(PutResult)))
        read = ReadResult(*[number] * len(fields(ReadResult)))
        numbers = dict.fromkeys((field.name for field in fields(DemoReport)), number)
        puts = dict.fromkeys(("yesterday", "today", "again"), put)
        reads = dict.fromkeys(("ranges", "members", "whole"), read)
        told: Any = {**numbers, **puts, **reads, "label": "folder", "note": ""}
        demo._print_report(DemoReport(**told))
        out = " ".join(capsys.readouterr().out.split())
        assert all(each in out for each in said)
