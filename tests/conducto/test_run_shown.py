"""A run on a terminal, and as a page."""

from __future__ import annotations

import html.parser
import os
import pty
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from pipelines import Pipelines

import castore
import conducto as co
from conducto.run.display import duration, last_lines
from conducto.run.printed import TAIL_BYTES, Tail
from conducto.run.records import Records
from conducto.run.states import Attempts, State

live = pytest.importorskip("conducto.run.live", reason="needs rich", exc_type=ImportError)


def tree() -> tuple[co.Node, dict[str, Attempts]]:
    root = co.Serial()
    root["a"] = co.Exec("x")
    root["b"] = co.Parallel()
    execs = {"/a": Attempts("/a", State.DONE, 1, 10.0, 12.5, 0)}
    for number in range(50):
        root[f"b/{number}"] = co.Exec("x")
        execs[f"/b/{number}"] = Attempts(f"/b/{number}", State.DONE, 1, 12.5, 13.0, 0)
    execs["/b/7"] = Attempts("/b/7", State.ERROR, 2, 12.5, 13.5, 1, "exit code 1")
    execs["/b/8"] = Attempts("/b/8", State.RUNNING, 1, time.time() - 75)
    return root, execs


def test_the_live_tree_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    root, execs = tree()
    now = time.time()
    monkeypatch.setattr(live, "time", SimpleNamespace(time=lambda: now))
    whole = live.draw(root, execs, 100).plain.splitlines()
    assert len(whole) == 53
    assert whole[1] == "├─0 ✓ a  2.50 s"
    assert whole[10] == "  ├─ ✗ 7  1.00 s  exit code 1"
    assert whole[11].startswith("  ├─ ▶ 8  1 min 1")
    assert live.draw(root, execs, 20).plain.splitlines() == [
        "▶ /",
        "└─1 ▶ b",
        "  ├─ ✗ 7  1.00 s  exit code 1",
        whole[11],
        "… of all commands: 1 running, 49 done, 1 failed",
    ]


def on_a_terminal(pipelines: Pipelines, *argv: str) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(
        [sys.executable, *argv], cwd=pipelines.folder, stdout=theirs, stderr=theirs, env=env
    ) as process:
        os.close(theirs)
        pieces = []
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux: nobody has the other end any more
                break
            if not piece:
                break
            pieces.append(piece)
    os.close(ours)
    return process.returncode, b"".join(pieces).decode()


def test_a_run_on_a_terminal_is_a_live_tree(pipelines: Pipelines) -> None:
    pipelines.write(
        "pipeline.py",
        """
        def build() -> co.Serial:
            root = co.Serial()
            root["quick"] = co.Exec("sleep 0.6")
            root["bad"] = co.Exec("echo what went wrong; exit 5")
            return root
        """,
    )
    code, shown = on_a_terminal(pipelines, "pipeline.py", "--run")
    assert code == 1
    assert "▶ quick" in shown  # while it ran
    assert "what went wrong" in shown
    assert "✗ bad" in shown
    assert "failed after" in shown.splitlines()[-3]


class Checker(html.parser.HTMLParser):
    """That each tag is closed by its own, and nothing is loaded from elsewhere."""

    VOID = ("meta", "img", "line", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert name not in ("href", "action")
            assert name != "src" or (value or "").startswith("data:")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_page_of_a_run(pipelines: Pipelines) -> None:
    root = co.Serial(doc="*All* of <it>", title="a & b")
    root["good"] = co.Exec("printf '\\033[31mred\\033[0m <b>&amp;\\n'")
    root["large"] = co.Exec("yes abcdefg | head -c 200000")
    root["plot"] = co.Exec("printf PNG | conducto-data-pipeline puts conducto-plots/plot/0000.png")
    root["bad"] = co.Exec("echo '</pre><script>'; exit 3")
    root["never"] = co.Exec("true")
    done = pipelines.run(root)
    asked = pipelines.conducto("show", done.id, "--html", "page.html")
    assert (asked.code, asked.out, asked.err) == (1, "", "")
    page = (pipelines.folder / "page.html").read_text()
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert checker.seen.count("rect") == 4  # one for each command that was begun
    assert "script" not in checker.seen
    text = "".join(checker.texts)
    for part in (
        "a & b",
        "*All* of <it>",
        "red <b>&amp;\n",
        "… 134,464 B before",
        "</pre><script>",
        "exit code 3",
        "3 done, 1 failed",
        "not begun",
    ):
        assert part in text, part
    assert "data:image/png;base64,UE5H" in page
    assert len(page) < 100_000


def test_a_page_of_many_nodes_asks_the_store_little(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On S3 an object that is opened, or a folder that is listed, is a request or several."""
    root = co.Parallel()
    for number in range(70):
        root[f"n{number}"] = co.Exec(f"echo it is {number}.")
    root["large"] = co.Exec("yes abcdefg | head -c 200000")
    root["silent"] = co.Exec("true")
    done = pipelines.run(root)
    asked: list[str] = []

    def counted(verb: str) -> None:
        plain = getattr(castore.Store, verb)
        monkeypatch.setattr(
            castore.Store, verb, lambda *args, **kw: (asked.append(verb), plain(*args, **kw))[1]
        )

    for verb in ("open", "gets", "info", "size", "exists", "names", "list", "gets_ranges"):
        counted(verb)
    assert pipelines.conducto("show", done.id, "--html", "page.html").code == 0
    assert len(asked) < 20, asked
    page = (pipelines.folder / "page.html").read_text()
    assert [page.count(f"<pre>it is {number}.\n</pre>") for number in range(70)] == [1] * 70
    assert page.count("… 134,464 B before\nabcdefg\n") == 1


def test_a_page_is_written_whole(pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    done = pipelines.run(co.Exec("true"))
    path = pipelines.folder / "page.html"
    path.write_text("before")
    path.chmod(0o640)
    (pipelines.folder / "link").symlink_to(path)

    def torn(source: str, target: str) -> None:
        assert path.read_text() == "before"
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", torn)
        assert pipelines.conducto("show", done.id, "--html", "link").code == 1
    assert path.read_text() == "before"
    nowhere = pipelines.conducto("show", done.id, "--html", "/no/where/page.html")
    assert (nowhere.code, nowhere.err) == (1, "conducto: /no/where: No such file or directory\n")
    assert pipelines.conducto("show", done.id, "--html", "link").code == 0
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert sorted(os.listdir(pipelines.folder)) == ["link", "page.html"]
    piped = pipelines.python("-m", "conducto", "show", done.id, "--html", "/dev/stdout")
    assert piped.out == path.read_text()


def test_a_pipeline_that_is_archived_meanwhile_is_not_listed(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = pipelines.run(co.Exec("true")).id
    gone: list[str] = []
    for verb in ("_last_session", "_all"):  # before and after the first that is read
        read = getattr(Records, verb)

        def archive(records: Records, *args: Any, read: Any = read) -> Any:
            if records.id in gone:
                records.store.delete_prefix(records.prefix)
            return read(records, *args)

        for words in (("show",), ("show", "ID")):
            gone.append(pipelines.run(co.Exec("true")).id)
            with monkeypatch.context() as patch:
                patch.setattr(Records, verb, archive)
                shown = pipelines.conducto(*(gone[-1] if word == "ID" else word for word in words))
            if len(words) == 1:
                assert (shown.code, len(shown.out.splitlines())) == (0, 1)
                assert shown.out.startswith(kept)
            else:
                assert shown.code == 1
                assert shown.err.startswith("conducto: no run of a pipeline ")


def test_plots_of_a_node(pipelines: Pipelines) -> None:
    pytest.importorskip("matplotlib")
    pipelines.write(
        "pipeline.py",
        """
        def draw(n: int):
            from matplotlib import pyplot as plt
            co.nb.matplotlib_inline()
            for i in range(n):
                plt.figure()
                plt.plot([1, 2, i])
            plt.show()
            plt.plot([3, 2, 1])
            plt.show()

        def build() -> co.Serial:
            root = co.Serial()
            root["draw it"] = co.Exec(draw, 2)
            return root
        """,
    )
    done = pipelines.python("pipeline.py", "--run")
    assert done.code == 0, done
    data = co.data.pipeline.bound(pipeline_id=done.id)
    names = [f"conducto-plots/draw it/{number:04}.png" for number in range(3)]
    assert data.list() == names
    assert all(data.gets(name).startswith(b"\x89PNG") for name in names)
    log = pipelines.conducto("logs", done.id, "draw it").out
    assert log.splitlines() == [f"![plot]({data.url(name)})" for name in names]
    pipelines.conducto("show", done.id, "--html", "page.html")
    assert (pipelines.folder / "page.html").read_text().count("data:image/png") == 3
    assert "requires a pipeline" in pipelines.python("pipeline.py", "draw", "1").err


def test_times_and_tails() -> None:
    assert [duration(s) for s in (0.0, 0.236, 9.99, 10, 59.4, 61, 3599, 7380)] == [
        "0.00 s", "0.24 s", "9.99 s", "10 s", "59 s", "1 min 1 s", "59 min 59 s", "2 h 3 min",
    ]  # fmt: skip
    tail = Tail()
    for number in range(2000):
        tail.feed(f"line {number}\n".encode())
    assert len(tail.text) == TAIL_BYTES
    assert last_lines(tail.text).splitlines()[-1] == "  | line 1999"
    assert len(last_lines(tail.text).splitlines()) == 10
    assert last_lines(b"") == ""
