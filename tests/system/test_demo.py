"""castore.demo: on a small folder, its table and JSON, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple
from pathlib import Path

import pytest

import castore
from castore import demo
from castore.cli import main
from castore.demo import corpus as demo_corpus


@pytest.fixture
def corpus(tmp_path):
    """Sixty text files and two binary ones, about 1.5 MB."""
    chance = random.Random(3)
    words = [chance.randbytes(chance.randint(2, 9)).hex() for _ in range(500)]
    folder = tmp_path / "corpus"
    for number in range(60):
        path = folder / f"part{number % 4}" / f"file{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [" ".join(chance.choices(words, k=12)) for _ in range(chance.randint(1, 150))]
        path.write_text("\n".join(lines) + "\n")
    (folder / "binary").write_bytes(b"\0" + chance.randbytes(400_000))
    (folder / "empty").touch()
    (folder / "link").symlink_to("binary")
    return folder


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def quiet(step: str) -> None:
    pass


def test_the_report_adds_up(corpus, temporary):
    report = demo.run(str(corpus), quiet)
    assert report.files == 62
    assert report.edited_files == 2
    assert report.bytes_in == report.yesterday.bytes_in + report.today.bytes_in
    assert report.checked_bytes == report.yesterday.bytes_in + 2 * report.today.bytes_in
    assert report.unique_bytes == report.yesterday.new_bytes + report.today.new_bytes
    assert report.stored_bytes == report.yesterday.stored_bytes + report.today.stored_bytes
    assert 0 < report.today.new_bytes < report.yesterday.new_bytes
    assert report.again.new_bytes == report.again.new_chunks == 0
    assert 0 < report.today.new_deltas <= report.today.new_chunks
    assert report.yesterday.new_deltas == 0
    assert report.ranges.count == demo.RANGES
    assert report.ranges.frame_bytes > 0
    assert report.members.count == demo.MEMBERS
    assert os.listdir(temporary) == []


def test_the_table_says_what_happened_and_what_is_next(corpus, temporary, capsys):
    assert main(["demo", str(corpus)]) == 0
    out = capsys.readouterr().out
    assert str(corpus) in out.replace("\n", "")
    for part in (
        "62 files",
        "2 of them edited by a line",
        "plain copy",
        "yesterday's tar",
        "deduplication",
        "4 KiB of today's tar",
        "every byte is right",
        "castore -r ",
    ):
        assert part in out
    assert max(map(len, out.splitlines()[2:])) <= 100
    assert len(out.splitlines()) < 30


def test_json_has_the_numbers_of_the_table(corpus, temporary, capsys):
    assert main(["demo", str(corpus), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dedup_ratio"] > 1
    assert document["total_ratio"] == pytest.approx(
        document["dedup_ratio"] * document["compression_ratio"]
    )
    for key in ("bytes_in", "new_bytes", "stored_bytes", "new_chunks", "new_deltas"):
        assert key in document["today"]
    for key in ("duration_s", "plain_duration_s"):
        assert key in document["today"]
    for key in ("count", "size", "chunks", "frame_bytes", "duration_s", "plain_duration_s"):
        assert key in document["ranges"]


def test_edits_are_real_and_the_same_every_time(corpus, tmp_path):
    chosen = demo_corpus.choose_corpus(str(corpus), bytes_max=1 << 30)
    edits = demo_corpus.plan_edits(chosen)
    assert edits == demo_corpus.plan_edits(chosen)
    demo_corpus.write_tar(str(tmp_path / "1.tar"), chosen, None)
    demo_corpus.write_tar(str(tmp_path / "2.tar"), chosen, edits)
    with tarfile.open(tmp_path / "1.tar") as tar:
        before = {entry.name: tar.extractfile(entry).read() for entry in tar}
    with tarfile.open(tmp_path / "2.tar") as tar:
        after = {entry.name: tar.extractfile(entry).read() for entry in tar}
    assert before == {name: (corpus / name).read_bytes() for name in before}
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed == set(edits.inserted)
    for name, (offset, text) in edits.inserted.items():
        assert after[name] == before[name][:offset] + text + before[name][offset:]
        assert offset == 0 or before[name][offset - 1 : offset] == b"\n"
    assert before.keys() - after.keys() == edits.removed
    assert after.keys() - before.keys() == edits.added.keys()


def test_edits_of_many_files_remove_some_and_add_as_many(tmp_path):
    for number in range(1000):
        (tmp_path / f"{number}.txt").write_text(f"file {number}\n" * (number % 50 + 1))
    edits = demo_corpus.plan_edits(demo_corpus.choose_corpus(str(tmp_path), bytes_max=1 << 30))
    assert (len(edits.inserted), len(edits.removed), len(edits.added)) == (30, 5, 5)
    assert not edits.removed & edits.inserted.keys()


def test_one_binary_file_will_do(tmp_path, temporary):
    (tmp_path / "one").write_bytes(random.Random(5).randbytes(700_000))
    report = demo.run(str(tmp_path / "one"), quiet)
    assert (report.files, report.edited_files) == (1, 1)
    assert report.today.new_bytes < report.today.bytes_in / 2


def test_what_cannot_be_done_is_one_line(corpus, temporary, tmp_path, monkeypatch, capsys):
    (tmp_path / "hollow").mkdir()
    for arguments, words in (
        (["demo", str(tmp_path / "none")], "none: No such file"),
        (["demo", str(tmp_path / "hollow")], "holds no readable bytes"),
    ):
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("castore: ")
        assert words in err
        assert err.count("\n") == 1
    monkeypatch.setattr("sysconfig.get_path", lambda key: str(tmp_path / "nowhere"))
    assert main(["demo"]) == 1
    assert "standard library is not at" in capsys.readouterr().err
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 99, 1 << 20))
    assert main(["demo", str(corpus)]) == 1
    assert "set TMPDIR" in capsys.readouterr().err
    assert os.listdir(temporary) == []


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_file_that_changes_while_it_is_packed_is_one_line(
    corpus, temporary, monkeypatch, capsys, change
):
    def plan(found):
        edits = plan_edits(found)
        change(file)
        return edits

    file = corpus / "part0" / "file0.txt"
    plan_edits = demo.plan_edits
    monkeypatch.setattr(demo, "plan_edits", plan)
    assert main(["demo", str(corpus)]) == 1
    assert capsys.readouterr() == (
        "",
        f"castore: {file} changed while it was packed: give the demo a folder in which nothing "
        "changes\n",
    )
    assert os.listdir(temporary) == []


def test_a_file_that_goes_while_they_are_listed_is_left_out(corpus, monkeypatch):
    def lstat(path):
        if str(path).endswith("file0.txt"):
            Path(path).unlink(missing_ok=True)
        return status(path)

    status = os.lstat
    monkeypatch.setattr(os, "lstat", lstat)
    found = demo.choose_corpus(str(corpus), bytes_max=1 << 30)
    assert len(found.files) == 61


def test_files_past_the_limit_are_left_out_and_counted(corpus):
    chosen = demo_corpus.choose_corpus(str(corpus), bytes_max=300_000)
    assert 0 < chosen.size <= 300_000
    assert "files left out" in chosen.note


def test_the_standard_library_is_found_without_site_packages():
    chosen = demo_corpus.choose_corpus(None, bytes_max=1 << 30)
    inner = {file.inner for file in chosen.files}
    assert "argparse.py" in inner
    assert "json/decoder.py" in inner
    assert not any("site-packages" in name or "__pycache__" in name for name in inner)


def test_wrong_bytes_are_noticed(corpus, temporary, monkeypatch):
    from castore.store import Store

    right = Store.gets
    monkeypatch.setattr(Store, "gets", lambda *args: right(*args)[:-1] + b"?")
    with pytest.raises(demo.DemoError, match="came back different"):
        demo.run(str(corpus), quiet)
    assert os.listdir(temporary) == []
    (temporary / "a").write_bytes(b"same" + b"x")
    (temporary / "b").write_bytes(b"same" + b"y")
    with pytest.raises(demo.DemoError, match="came back different"):
        demo._compare(str(temporary / "a"), str(temporary / "b"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path, number, code):
    (tmp_path / "temporary").mkdir()
    roots = [str(Path(castore.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONPATH": os.pathsep.join(filter(None, roots)),
    }
    begun = subprocess.Popen(
        [sys.executable, "-m", "castore", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    deadline = time.monotonic() + 20
    while not os.listdir(tmp_path / "temporary") and time.monotonic() < deadline:
        time.sleep(0.01)
    begun.send_signal(number)
    _, err = begun.communicate(timeout=20)
    assert begun.returncode == code
    assert err in (b"", b"castore: interrupted\n")
    assert os.listdir(tmp_path / "temporary") == []
