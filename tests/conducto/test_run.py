"""Pipelines run: as `python FILE --run`, as `conducto run`, and what is kept of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from pipelines import Pipelines

import castore
import conducto as co
from conducto import context
from conducto.nodes.serialization import dumps
from conducto.run import printed

EXAMPLE = """
    def add(a: int, b: list[int], loud: bool = False):
        "Adds."
        print("sum", a + sum(b), loud)

    def some(n: int) -> co.Parallel:
        with co.Parallel() as tree:
            for i in range(n):
                co.Exec(add, i, [10], name=f"n{i}")
        return tree

    def build() -> co.Serial:
        with co.Serial() as root:
            root["first"] = co.Exec("echo it is first; echo on stderr >&2")
            with co.Parallel(name="test"):
                co.Exec("echo fast", name="fast")
                co.Exec(add, 3, b=[1], loud=True, name="sum")
            root["lazy"] = co.Lazy(some, 2)
        return root

    def name(who: str = "you"):
        return {"who": who}
"""


def test_a_tree_is_printed_run_shown_and_archived(pipelines: Pipelines) -> None:
    pipelines.write("pipeline.py", EXAMPLE)
    printed = pipelines.python("pipeline.py")
    assert printed == (
        0,
        "/\n"
        "├─0 first   echo it is first; echo on stderr >&2\n"
        "├─1 test\n"
        "│ ├─ fast   echo fast\n"
        "│ └─ sum   python pipeline.py add --a=3 --b=1 --loud\n"
        "└─2 lazy\n"
        "  ├─0 Generate   python pipeline.py some --n=2\n"
        "  └─1 Execute\n",
        "",
    )
    done = pipelines.python("pipeline.py", "build", "--run", "-j", "2")
    assert (done.code, done.err) == (0, "")
    assert "/test/sum done after " in done.out
    assert done.out.splitlines()[-1].endswith("6 done")
    shown = pipelines.conducto("show", done.id)
    assert (shown.code, shown.err) == (0, "")
    assert [line.split("  ")[0] for line in shown.out.splitlines()] == [
        "/", "├─0 first", "├─1 test", "│ ├─ fast", "│ └─ sum", "└─2 lazy",
        "", "", "", "",
    ]  # fmt: skip
    assert pipelines.conducto("logs", done.id, "/first").out == "it is first\non stderr\n"
    assert pipelines.conducto("logs", done.id, "test/sum").out == "sum 4 True\n"
    assert pipelines.conducto("logs", done.id, "lazy/Execute/n1").out == "sum 11 False\n"
    listed = pipelines.conducto("show").out
    assert listed.startswith(done.id)
    assert listed.endswith("pipeline.py build\n")
    assert json.loads(pipelines.conducto("show", "--json").out)["nodes"] == {"done": 6}
    assert int(pipelines.conducto("archive", done.id).out) > 10
    for verb in (["show", done.id], ["logs", done.id, "first"], ["run", "--resume", done.id]):
        gone = pipelines.conducto(*verb)
        assert gone.code == 1
        assert gone.err == f"conducto: no run of a pipeline '{done.id}' is in the store\n"


def test_functions_by_hand(pipelines: Pipelines) -> None:
    """A node's command is one that can be given on a shell; others work, too."""
    pipelines.write("pipeline.py", EXAMPLE)
    assert pipelines.python("pipeline.py", "add", "--a=3", "--b=1", "--loud").out == "sum 4 True\n"
    assert pipelines.python("pipeline.py", "add", "3", "1,2").out == "sum 6 False\n"
    assert pipelines.python("pipeline.py", "name", "--who=me").out == '{"who": "me"}\n'
    assert pipelines.python("-m", "conducto", "pipeline.py", "name").out == '{"who": "you"}\n'
    assert pipelines.python("pipeline.py", "some", "--n", "1").out.splitlines() == [
        "/", "└─ n0   python pipeline.py add --a=0 --b=10",
    ]  # fmt: skip
    tree = json.loads(pipelines.python("pipeline.py", "some", "1", "--json").out)
    assert (tree["conducto"], tree["type"]) == (1, "Parallel")
    usage = pipelines.python("pipeline.py", "--help")
    assert usage.code == 0
    assert "  add(a: int, b: list[int], loud: bool = False)\n      Adds.\n" in usage.out
    assert re.search(r"  build\(\) -> .*Serial \(the default\)\n", usage.out)
    usage = pipelines.python("pipeline.py", "add", "--help")
    assert usage.code == 0
    assert "  add(a: int" in usage.out
    assert "build" not in usage.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["other"], 2, "'other' is not one of the functions add, some, build, name"),
        (["add", "--a=x", "--b=1"], 2, "--a can't be 'x'"),
        (["add", "3"], 2, "b missing"),
        (["build", "--run", "-j", "0"], 2, "-j takes a number from 1"),
        (["build", "--run", "-j\u00b2"], 2, "unexpected argument '-j\u00b2'"),
        (["build", "--run", "-j", "\u00b2"], 2, "-j takes a number from 1"),
        (["build", "-j", "2"], 2, "-j goes with --run"),
        (["build", "--cloud"], 2, "nothing here runs pipelines in a cloud"),
        (["build", "--fast"], 2, "unknown option --fast"),
        (["name", "--run"], 2, "returned no tree"),
    ],
)
def test_usage(pipelines: Pipelines, words: list[str], code: int, said: str) -> None:
    pipelines.write("pipeline.py", EXAMPLE)
    done = pipelines.python("pipeline.py", *words)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("pipeline.py: ")
    assert said in done.err
    assert len(done.err.splitlines()) == 1


RESULTS = """
import conducto as co

def text():
    return "as it is"

def data():
    return b"bytes"

def other():
    return {1, 2}

if __name__ == "__main__":
    co.main()
"""


def test_co_main_returns_what_the_function_does(capfd: pytest.CaptureFixture[str]) -> None:
    tree = co.Exec("true")
    functions = {"build": lambda: tree, "other": lambda: {1, 2}, "none": lambda: None}
    assert co.main(functions, argv=["build"]) is tree
    assert capfd.readouterr().out == "/   true\n"
    assert co.main(functions, argv=["other"]) == {1, 2}
    assert capfd.readouterr().out == "{1, 2}\n"
    got: list[object] = []
    for word, result in (("build", tree), ("other", {1, 2}), ("none", None)):
        assert co.main(functions, argv=[word], printer=got.append) == result
    assert got == [{1, 2}]
    assert co.main(functions, argv=["--help"]) is None
    with pytest.raises(SystemExit):
        co.main(functions, argv=["another"])


def test_what_a_function_returns_is_printed(pipelines: Pipelines) -> None:
    pipelines.write("pipeline.py", RESULTS)
    assert pipelines.python("pipeline.py", "text").out == "as it is\n"
    assert pipelines.python("pipeline.py", "data").out == "bytes"
    assert pipelines.python("pipeline.py", "other").out == "{1, 2}\n"
    for words in ([], ["--run"]):
        none = pipelines.python("pipeline.py", *words)
        assert (none.code, none.out) == (2, "")
        assert none.err.startswith("pipeline.py: which function? one of text, data, other ")


def test_files_and_pipelines_that_are_none(pipelines: Pipelines) -> None:
    for words, said in (
        (["run"], "run takes a FILE, or --resume ID"),
        (["run", "none.py"], "there is no file 'none.py' to run"),
        (["show", "--html", "page.html"], "--html is of one pipeline: give its ID"),
    ):
        asked = pipelines.conducto(*words)
        assert (asked.code, asked.out) == (2, "")
        assert said in asked.err
    called = pipelines.python("-m", "conducto", "none.py", "function")
    assert (called.code, called.out) == (2, "")
    assert "there is no file 'none.py'" in called.err
    assert not (pipelines.folder / "page.html").exists()


def test_a_run_whose_folder_is_gone_is_not_resumed_elsewhere(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pipelines.folder / "begun"
    folder.mkdir()
    monkeypatch.chdir(folder)
    done = pipelines.run(co.Exec("test -e mended"))
    monkeypatch.chdir(pipelines.folder)
    folder.rmdir()
    resumed = pipelines.conducto("run", "--resume", done.id)
    assert (resumed.code, resumed.out) == (1, "")
    assert "begun', which is not there" in resumed.err
    assert pipelines.load(done.id).execs["/"].attempt == 1


def test_conducto_run_is_that_of_the_file(pipelines: Pipelines) -> None:
    pipelines.write("pipeline.py", EXAMPLE)
    done = pipelines.python("-m", "conducto", "run", "pipeline.py", "some", "--n=2", "-j2")
    assert (done.code, done.err) == (0, "")
    assert pipelines.states(done.id) == {"/": "done", "/n0": "done", "/n1": "done"}
    done = pipelines.python("-m", "conducto", "run", "pipeline.py", "some", "--", "2")
    assert pipelines.states(done.id) == {"/": "done", "/n0": "done", "/n1": "done"}
    missing = pipelines.python("-m", "conducto", "run", "pipeline.py", "name", "--who")
    assert (missing.code, missing.out) == (2, "")
    helped = pipelines.python("-m", "conducto", "run", "pipeline.py", "some", "--help")
    assert helped.out.startswith("usage: pipeline.py")
    pipelines.write("none.py", "import conducto")
    none = pipelines.conducto("run", "none.py")
    assert (none.code, none.err) == (
        1, "conducto: none.py runs no pipeline: it does not come to co.main()\n",
    )  # fmt: skip
    assert pipelines.conducto("run", "gone.py").code == 2
    assert pipelines.conducto("run").code == 2
    assert "--resume needs a value" in pipelines.conducto("run", "--resume").err
    assert "run takes a FILE, or --resume ID" in pipelines.conducto("run", "-j2").err


def test_functions_of_other_files_need_no_co_main(pipelines: Pipelines) -> None:
    package = pipelines.folder / "steps"
    package.mkdir()
    (package / "__init__.py").write_text("BASE = 2\n")
    (package / "count.py").write_text("from . import BASE\ndef count(n: int): print(n * BASE)\n")
    (pipelines.folder / "tools.py").write_text("def greet(who: str): print('hello', who)\n")
    pipelines.write(
        "pipeline.py",
        """
        import tools
        from steps.count import count

        def build() -> co.Parallel:
            root = co.Parallel()
            root["count"] = co.Exec(count, 21)
            root["greet"] = co.Exec(tools.greet, "a b")
            return root
        """,
    )
    assert "python -m conducto tools.py greet '--who=a b'" in pipelines.python("pipeline.py").out
    done = pipelines.python("pipeline.py", "--local")
    assert done.code == 0
    assert pipelines.conducto("logs", done.id, "count").out == "42\n"
    assert pipelines.conducto("logs", done.id, "greet").out == "hello a b\n"


def test_files_that_are_named_or_found_in_odd_ways(pipelines: Pipelines) -> None:
    """A name of the standard library; a module that `python -m` runs; a folder that was left."""
    package = pipelines.folder / "steps"
    package.mkdir()
    (package / "__init__.py").write_text("BASE = 2\n")
    (package / "count.py").write_text(
        "import conducto as co\nfrom . import BASE\n"
        "def count(n: int): print(n * BASE)\n"
        "def build() -> co.Exec: return co.Exec(count, 21)\n"
        "if __name__ == '__main__': co.main(default=build)\n"
    )
    assert pipelines.python("-m", "steps.count", "build").out == (
        "/   python -m conducto steps/count.py count --n=21\n"
    )
    done = pipelines.python("-m", "steps.count", "--run")
    assert pipelines.conducto("logs", done.id, "/").out == "42\n"
    (pipelines.folder / "queue.py").write_text("def f(): import queue; print(queue.Queue)\n")
    assert "class" in pipelines.python("-m", "conducto", "queue.py", "f", PYTHONSAFEPATH="1").out
    pipelines.write(
        "pipeline.py",
        """
        import os
        os.chdir("/")
        def f(): pass
        def build() -> co.Exec:
            return co.Exec(f, image=co.Image(copy_dir="."))
        """,
    )
    assert pipelines.python("pipeline.py").out == "/   python pipeline.py f\n"


def test_titles_and_tags_are_listed(pipelines: Pipelines) -> None:
    done = pipelines.run(co.Exec("true", title="all of it", tags=["nightly", "x"]))
    listed = pipelines.conducto("show").out
    assert (listed.split()[0], listed.endswith("done       all of it [nightly] [x]\n")) == (
        done.id, True,
    )  # fmt: skip
    document = json.loads(pipelines.conducto("show", "--json").out)
    assert (document["title"], document["tags"]) == ("all of it", ["nightly", "x"])


def test_a_title_of_several_lines_is_listed_in_one(pipelines: Pipelines) -> None:
    pipelines.run(co.Exec("true", title="select *\n  from there\n", tags=["a\nb"]))
    listed = pipelines.conducto("show").out.splitlines()
    assert [line.partition("done")[2].strip() for line in listed] == ["select * from there [a b]"]
    document = json.loads(pipelines.conducto("show", "--json").out)
    assert document["title"] == "select *\n  from there\n"


def test_a_title_that_is_a_number_is_listed(pipelines: Pipelines) -> None:
    root = co.Serial()
    root["a"] = co.Exec("true", doc=7)  # type: ignore[arg-type]
    root.title = 2024  # type: ignore[assignment]
    done = pipelines.run(root)
    assert "  2024" in pipelines.conducto("show").out
    assert pipelines.conducto("show", done.id, "--html", "run.html").code == 0


def test_a_run_that_can_not_be_read_keeps_no_other_from_being_listed(pipelines: Pipelines) -> None:
    root = co.Serial(title="it is mine")
    root["a"] = co.Exec("true")
    pipelines.run(root)
    later = {"tree": {"conducto": 2}, "cwd": "/", "argv": [], "created": 1}
    pipelines.records("later").store.puts("pipelines/later/run/tree", json.dumps(later).encode())
    shown = pipelines.conducto("show")
    assert "it is mine" in shown.out
    assert shown.err.startswith(
        "conducto: pipeline 'later' can't be shown: a tree is a JSON object"
    )
    assert shown.code == 1


def test_a_failure_stops_and_is_shown_and_a_resume_goes_on(pipelines: Pipelines) -> None:
    root = co.Serial()
    root["a"] = co.Exec("echo a >> ran")
    root["p"] = co.Parallel()
    root["p/good"] = co.Exec("echo good >> ran")
    root["p/bad"] = co.Exec("for i in $(seq 30); do echo line $i; done; test -e mended || exit 7")
    root["b"] = co.Exec("echo b >> ran")
    done = pipelines.run(root)
    assert done.code == 1
    assert "/p/bad failed after" in done.out
    assert ": exit code 7\n  | line 21\n" in done.out
    assert f"conducto run --resume {done.id}" in done.out
    assert pipelines.conducto("show", done.id).code == 1
    states = {"/": "error", "/a": "done", "/p": "error", "/p/good": "done", "/p/bad": "error"}
    assert pipelines.states(done.id) == {**states, "/b": "pending"}
    (pipelines.folder / "mended").touch()
    again = pipelines.conducto("run", "--resume", done.id, "-j1")
    assert (again.code, again.id) == (0, done.id)
    assert again.out.startswith(f"pipeline {done.id} goes on: 2 done before\n")
    assert "/p/bad begins (attempt 2)" in again.out
    assert sorted(pipelines.lines("ran")) == ["a", "b", "good"]
    assert set(pipelines.states(done.id).values()) == {"done"}
    for attempt in ("1", "2"):
        log = pipelines.conducto("logs", done.id, "p/bad", "--attempt", attempt)
        assert log.out.splitlines()[-1] == "line 30"
    assert pipelines.conducto("logs", done.id, "p/bad", "--attempt=3").code == 1
    nothing = pipelines.conducto("run", "--resume", done.id)
    assert (nothing.code, len(nothing.out.splitlines())) == (0, 2)


def test_a_tree_that_a_lazy_made_is_resumed_without_making_it_again(pipelines: Pipelines) -> None:
    inner = co.Serial()
    inner["x"] = co.Exec("echo x >> ran")
    inner["y"] = co.Exec("echo y >> ran; test -e mended")
    inner["more"] = co.Lazy(f"echo more >> ran; echo '{dumps(co.Exec('echo z >> ran'))}'")
    root = co.Serial()
    pipelines.write("tree.json", "some words\n" + dumps(inner) + "\nmore words\n")
    root["lazy"] = co.Lazy("echo made >> ran; cat tree.json")
    done = pipelines.run(root)
    assert done.code == 1
    assert pipelines.conducto("logs", done.id, "lazy/Generate").out.startswith("some words\n")
    (pipelines.folder / "mended").touch()
    assert pipelines.conducto("run", "--resume", done.id).code == 0
    assert pipelines.lines("ran") == ["made", "x", "y", "y", "more", "z"]
    assert pipelines.states(done.id)["/lazy/Execute/more/Execute"] == "done"


def test_a_lazy_whose_tree_was_not_recorded_makes_it_again(pipelines: Pipelines) -> None:
    """On S3 a killed runner may have put only some of a commit's names."""
    root = co.Lazy(
        "echo made >> ran; echo '" + dumps(co.Exec("echo in >> ran; test -e mended")) + "'"
    )
    done = pipelines.run(root)
    records = pipelines.records(done.id)
    records.store.delete(records.grown_key("/Generate"))
    shown = pipelines.conducto("show", done.id)
    assert (shown.code, "killed after" in shown.out) == (1, True)
    (pipelines.folder / "mended").touch()
    assert pipelines.conducto("run", "--resume", done.id).code == 0
    assert pipelines.lines("ran") == ["made", "in", "made", "in"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo nothing", "it printed no tree"),
        ("echo '{\"conducto\": 1}'", "the tree is malformed"),
        ("exit 4", "exit code 4"),
    ],
)
def test_a_lazy_that_makes_no_tree_fails(pipelines: Pipelines, command: str, reason: str) -> None:
    done = pipelines.run(co.Lazy(command))
    assert done.code == 1
    states = pipelines.states(done.id)
    assert (states["/"], states["/Generate"]) == ("error", "error")
    assert reason in pipelines.conducto("show", done.id).out


def test_a_function_that_the_help_does_not_list_can_be_a_node(pipelines: Pipelines) -> None:
    """One that begins with "_", and one that `__all__` leaves out, of this file and of another."""
    work = """
        __all__ = ["build"]
        def _work(x: int): print("it is", x)
        def other(): print("other")
    """
    build = """
        def build() -> co.Serial:
            root = co.Serial()
            root["work"] = co.Exec(_work, 3)
            root["other"] = co.Exec(other)
            return root
    """
    pipelines.write("own.py", work + build)
    (pipelines.folder / "work.py").write_text(textwrap.dedent(work))
    pipelines.write("foreign.py", "        from work import _work, other\n" + build)
    for name in ("own.py", "foreign.py"):
        done = pipelines.python(name, "--run")
        assert done.code == 0, done
        assert pipelines.log(done.id, "/work") == b"it is 3\n"
        assert "_work" not in pipelines.python(name, "--help").out


@pytest.mark.parametrize("way", ["", "--json", "--run"])
def test_a_lazy_of_another_pipelines_command(pipelines: Pipelines, way: str) -> None:
    """`--json` is how the tree is looked at, and makes the same one."""
    pipelines.write("other.py", "def build() -> co.Node:\n    return co.Exec('echo it ran')\n")
    done = pipelines.run(co.Lazy(f"python other.py build {way}"))
    if way == "--run":
        assert "a Lazy's command prints a tree, and does not run it" in done.out
    else:
        assert done.code == 0
        assert pipelines.log(done.id, "/Execute") == b"it ran\n"


def test_a_tree_that_is_too_long_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no part of it, or tree before it, is taken for it."""
    monkeypatch.setattr(printed, "LINE_BYTES_MAX", 100)
    catcher = printed.TreeCatcher()
    tree, long = (b'{"conducto": 1, %s}' % (b" " * n) for n in (9, 90))
    for piece in (tree, b"\n", b"x" * 200, b"\n", long[:50], long[50:]):
        catcher.feed(piece)
    with pytest.raises(co.TreeError, match="it printed a tree of over 100 bytes"):
        catcher.tree()
    catcher.feed(b"\n" + b"x" * 200 + b"\n" + tree + b"\nmore")
    assert catcher.tree() == tree


def test_retries_and_a_time_limit(pipelines: Pipelines) -> None:
    root = co.Parallel()
    root["flaky"] = co.Exec("echo x >> tries; test $(wc -l < tries) -ge 3", retries=3)
    root["slow"] = co.Exec("echo began; sleep 60", max_time=0.4)
    root["stubborn"] = co.Exec("trap '' TERM; echo no; sleep 60 & wait; wait", max_time="0.4s")
    done = pipelines.run(root, parallel=3)
    assert done.code == 1
    run = pipelines.load(done.id)
    flaky, slow = run.execs["/flaky"], run.execs["/slow"]
    assert (flaky.state, flaky.attempt, len(pipelines.lines("tries"))) == ("done", 3, 3)
    assert "/flaky failed after" in done.out
    assert "exit code 1; tries left: 3" in done.out
    assert (slow.state, slow.reason) == ("error", "timed out after 0.4 s")
    assert slow.duration_s is not None
    assert slow.duration_s < 20
    assert run.execs["/stubborn"].reason == "timed out after 0.4 s"
    assert pipelines.conducto("logs", done.id, "slow").out == "began\n"


def test_what_a_command_finds_around_it(pipelines: Pipelines) -> None:
    show = "import os, sys; print(os.getcwd(), sys.stdin.read(), os.getsid(0) == os.getpid())"
    other = pipelines.folder / "other"
    other.mkdir()
    root = co.Serial(env={"A": "root", "B": "root"})
    root["env"] = co.Exec(
        "echo $A $B $CONDUCTO_NODE $CONDUCTO_PIPELINE_ID",
        env={"B": "node", "CONDUCTO_NODE": "x", "CONDUCTO_PIPELINE_ID": "y", "CONDUCTO_RUN": "z"},
    )
    root["python"] = co.Exec(f'exec python -c "{show}"')
    root["folder"] = co.Exec("pwd; echo $0", image=co.Image(copy_dir=str(other), shell="/bin/sh"))
    root["data"] = co.Exec("conducto-data-pipeline puts x < /dev/null")
    root["who"] = co.Exec("command -v python")
    root["gone"] = co.Exec("pwd", image=co.Image(copy_dir="/not/there"))
    root.stop_on_error = False
    root["no repository"] = co.Exec(
        "pwd", image=co.Image(copy_repo=True, instantiation_directory="/")
    )
    root["too much"] = co.Exec("pwd", env={"A": "x" * 5_000_000})
    done = pipelines.run(root)
    logs = {name: pipelines.conducto("logs", done.id, name).out for name in [*root.children][:5]}
    assert logs["env"] == f"root node /env {done.id}\n"
    assert logs["python"] == f"{pipelines.folder}  True\n"
    assert logs["folder"] == f"{other}\n/bin/sh\n"
    assert co.data.pipeline.bound(pipeline_id=done.id).list() == ["x"]
    assert os.path.realpath(logs["who"].strip()) == os.path.realpath(sys.executable)
    reasons = {node: each.reason for node, each in pipelines.load(done.id).execs.items()}
    assert "no folder '/not/there'" in reasons["/gone"]
    assert "in no Git repository" in reasons["/no repository"]
    assert reasons["/too much"].startswith("can't be started: ")


def test_the_store_is_where_the_environment_says(pipelines: Pipelines, tmp_path: Path) -> None:
    done = pipelines.run(co.Exec("echo hello"))
    assert Path(context.store_url()).is_relative_to(tmp_path)
    names = list(context.open_store().names())
    assert names
    assert all(name.startswith(f"pipelines/{done.id}/run/") for name in names)


def test_a_profile_is_that_of_the_run_and_of_its_nodes(pipelines: Pipelines) -> None:
    pipelines.write(
        "pipeline.py",
        """
        def build():
            return co.Exec("echo 1 | conducto-data-user puts a; echo $CONDUCTO_PROFILE; cat good")
        """,
    )
    done = pipelines.python("pipeline.py", "--run", "--profile", "other")
    assert done.code == 1
    assert pipelines.conducto("show", done.id).code == 1
    assert "other\n" in pipelines.conducto("logs", done.id, "/", "--profile=other").out
    for words in ([], ["--profile="]):
        assert pipelines.conducto("run", "--resume", done.id, *words).code in (1, 2)
    Path("good").touch()
    resumed = pipelines.python("-m", "conducto", "run", "--resume", done.id, "--profile=other")
    assert (resumed.code, resumed.err) == (0, "")
    ran = pipelines.python("-m", "conducto", "run", "pipeline.py", "--profile=third")
    assert ran.code == 0
    assert len(pipelines.conducto("show", "--profile=third").out.splitlines()) == 1
    assert co.data.user.bound(profile="other").gets("a") == b"1\n"


def test_skipped_and_suppressed(pipelines: Pipelines) -> None:
    root = co.Serial()
    root["skipped"] = co.Parallel(skip=True)
    root["skipped/x"] = co.Exec("echo x >> ran")
    root["may fail"] = co.Serial(suppress_errors=True)
    root["may fail/x"] = co.Exec("exit 1")
    root["all"] = co.Serial(stop_on_error=False)
    root["all/bad"] = co.Exec("false")
    root["all/after"] = co.Exec("echo after >> ran")
    done = pipelines.run(root)
    assert done.code == 1
    states = pipelines.states(done.id)
    assert (states["/skipped"], states["/skipped/x"]) == ("skipped", "skipped")
    assert (states["/may fail"], states["/may fail/x"]) == ("done", "error")
    assert (states["/all"], states["/all/after"]) == ("error", "done")
    assert pipelines.lines("ran") == ["after"]
    assert done.out.splitlines()[-3].endswith("1 done, 2 failed, 1 skipped")


def test_that_no_containers_are_started_is_said_once(pipelines: Pipelines) -> None:
    root = co.Serial(image="python:3.12")
    for name in ("a", "b"):
        root[name] = co.Exec("true", image=co.Image(dockerfile="x"), requires_docker=True)
    root["c"] = co.Exec("true", docker_run_args=["--shm-size=1g"])
    root["d"] = co.Parallel(same_container=co.SameContainer.NEW)  # would run one after another
    done = pipelines.run(root)
    assert done.code == 0
    assert done.err == (
        "conducto: nothing here starts containers: commands run as processes of this machine, and "
        "container_reuse_context, docker_run_args, dockerfile, image, requires_docker of images "
        "and nodes are not acted on\n"
    )


def test_json_lines(pipelines: Pipelines) -> None:
    root = co.Serial()
    root["a"] = co.Exec("echo a")
    root["b"] = co.Exec("echo oh; exit 2")
    done = pipelines.run(root, as_json=True)
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [(e["event"], e.get("node"), e.get("state")) for e in events] == [
        ("run", None, None),
        ("node", "/a", "running"),
        ("node", "/a", "done"),
        ("node", "/b", "running"),
        ("node", "/b", "error"),
        ("end", None, "error"),
    ]
    assert (events[-2]["tail"], events[-2]["exit_code"]) == ("oh\n", 2)
    assert events[-1]["nodes"] == {"done": 1, "error": 1}


def test_logs_that_are_large_binary_or_without_an_end_of_line(pipelines: Pipelines) -> None:
    root = co.Parallel()
    root["large"] = co.Exec("yes 'a line of a log' | head -c 20000000")
    root["binary"] = co.Exec("head -c 3000 /dev/zero; printf '\\377\\0end'; exit 1")
    root["none"] = co.Exec("true")
    done = pipelines.run(root)
    large = pipelines.log(done.id, "/large")
    assert large == (b"a line of a log\n" * 1_250_000)[:20_000_000]
    assert pipelines.log(done.id, "/binary") == bytes(3000) + b"\xff\0end"
    assert pipelines.log(done.id, "/none") == b""


def test_what_is_asked_of_a_run_that_it_has_not(pipelines: Pipelines) -> None:
    root = co.Serial()
    root["a"] = co.Exec("false")
    root["b"] = co.Exec("true")
    root["many"] = co.Parallel()
    for number in range(1000):
        root[f"many/n{number}"] = co.Exec("true")
    done = pipelines.run(root)
    for words, said in (
        (["logs", done.id, "c/d"], f"{done.id} has no node 'c/d': conducto show {done.id}"),
        (["logs", done.id, "/"], "/ is no command; those below it: /a, /b, /many/n0, "),
        (["logs", done.id, "many"], f"/many/n9 and 990 more: conducto show {done.id} lists them"),
        (["logs", done.id, "b"], "/b has no attempt 0; attempts begun: 0"),
        (["logs", done.id, "a", "--attempt=x"], "/a has no attempt x"),
        (["logs", done.id, "a", "--attempt=\u00b9"], "/a has no attempt \u00b9"),
        (["show", "other"], "no run of a pipeline 'other'"),
    ):
        asked = pipelines.conducto(*words)
        assert (asked.code, asked.out) == (1, "")
        assert said in asked.err
        assert len(asked.err) < 300


def test_secrets_are_in_the_environment_and_in_no_log(pipelines: Pipelines) -> None:
    """Also not where a command's last lines are shown, and below what a node says itself."""
    co.api.Secrets().put_user_secrets({"TOKEN": "open sesame", "OTHER": "of the secrets"})
    root = co.Parallel(env={"OTHER": "of the node"})
    root["lazy"] = co.Lazy("echo $TOKEN; echo '" + dumps(co.Exec("echo in $TOKEN")) + "'")
    root["leak"] = co.Lazy("echo '" + dumps(co.Exec("echo TOKEN")) + '\' | sed "s/TOKEN/$TOKEN/"')
    root["bad"] = co.Exec(
        "echo it is $TOKEN; printf 'open ses'; sleep 0.1; echo ame; echo $OTHER; exit 1"
    )
    done = pipelines.run(root)
    assert "  | it is ***\n  | ***\n  | of the node\n" in done.out
    assert pipelines.conducto("logs", done.id, "bad").out == "it is ***\n***\nof the node\n"
    assert pipelines.conducto("logs", done.id, "lazy/Execute").out == "in ***\n"
    shown = pipelines.conducto("show", done.id).out
    assert "Generate  failed" in shown
    assert "the value of a secret" in shown
    pipelines.conducto("show", done.id, "--html", "page.html")
    store = context.open_store()
    kept = b"".join(store.gets(name) for name in store.names())
    assert b"in ***" in kept
    for text in (done.out, shown, (pipelines.folder / "page.html").read_text(), str(kept)):
        assert "open sesame" not in text


def test_a_function_that_fails_says_where(pipelines: Pipelines) -> None:
    """Its traceback is in the log, without frames of ours; what exits by itself does so."""
    pipelines.write(
        "pipeline.py",
        """
        import functools, sys

        def twice(function):
            @functools.wraps(function)
            def both(*args, **kwargs):
                function(*args, **kwargs)
                return function(*args, **kwargs)
            return both

        @twice
        def fail(n: int):
            print("so far", n)
            raise LookupError("not there") if n else SystemExit(9)

        def build() -> co.Parallel:
            root = co.Parallel()
            root["bad"] = co.Exec(fail, 1)
            root["exits"] = co.Exec(fail, 0)
            return root
        """,
    )
    done = pipelines.python("pipeline.py", "--run")
    assert done.code == 1
    log = pipelines.conducto("logs", done.id, "bad").out.splitlines()
    assert (log[0], log[1], log[-1]) == (
        "so far 1", "Traceback (most recent call last):", "LookupError: not there",
    )  # fmt: skip
    assert not [line for line in log if "conducto/run" in line]
    assert pipelines.load(done.id).execs["/exits"].exit_code == 9
    assert pipelines.python("-m", "conducto", "pipeline.py", "fail", "1").code == 1
    pipelines.write("broken.py", "import conducto\nx = 1 / 0\n")
    for words in (["broken.py", "f"], ["run", "broken.py"]):
        broken = pipelines.python("-m", "conducto", *words)
        assert broken.code == 1
        assert broken.err.endswith("ZeroDivisionError: division by zero\n")


def test_what_a_coroutine_returns_is_awaited(pipelines: Pipelines) -> None:
    pipelines.write("pipeline.py", "async def build(n: int = 2): return n * 21\n")
    assert pipelines.python("pipeline.py").out == "42\n"


def test_python_that_is_in_no_virtual_environment(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands beside it, as in /usr/bin, do not come before those of the PATH."""
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(sys, "executable", sys._base_executable)  # type: ignore[attr-defined]
    (pipelines.folder / "python3-config").write_text("#!/bin/sh\necho mine\n")
    (pipelines.folder / "python3-config").chmod(0o755)
    monkeypatch.setenv("PATH", f"{pipelines.folder}:/bin")
    own = os.path.dirname(sys.executable)
    done = pipelines.run(co.Exec("command -v python; python3-config; echo $PATH"))
    python, mine, path = pipelines.conducto("logs", done.id, "/").out.splitlines()
    assert os.path.realpath(python) == os.path.realpath(sys.executable)
    assert mine == "mine"
    assert path.endswith(f":{pipelines.folder}:/bin:{own}")


def test_a_tree_after_a_line_without_an_end(pipelines: Pipelines) -> None:
    pipelines.write(
        "pipeline.py",
        """
        def inner() -> co.Exec:
            print("no end", end="")
            return co.Exec("echo in")

        def build() -> co.Lazy:
            return co.Lazy(inner)
        """,
    )
    done = pipelines.python("pipeline.py", "--run")
    assert done.code == 0, done
    assert pipelines.conducto("logs", done.id, "Execute").out == "in\n"


def test_the_options_of_co_main_are_the_roots(pipelines: Pipelines) -> None:
    pipelines.write(
        "pipeline.py",
        """
        import conducto as co
        def build() -> co.Exec:
            return co.Exec("echo $A $B; pwd", env={"B": "node"})
        co.main(default=build, env={"A": "main", "B": "main"}, image=co.Image(copy_dir="code"))
        """,
    )
    (pipelines.folder / "pipeline.py").write_text(
        (pipelines.folder / "pipeline.py").read_text().replace("\n        ", "\n")
    )
    (pipelines.folder / "code").mkdir()
    done = pipelines.python("pipeline.py", "--run")
    assert done.code == 0, done
    assert pipelines.conducto("logs", done.id, "/").out == f"main node\n{pipelines.folder}/code\n"


def test_nodes_in_other_folders_find_the_store_of_the_run(pipelines: Pipelines) -> None:
    """By a path that is relative to where the run was begun."""
    (pipelines.folder / "sub").mkdir()
    pipelines.write(
        "pipeline.py",
        """
        def put():
            co.data.pipeline.puts("made", b"42")

        def build() -> co.Exec:
            return co.Exec(put, image=co.Image(copy_dir="sub"))
        """,
    )
    base = "relative/base"
    done = pipelines.python("pipeline.py", "--run", CONDUCTO_BASE_DIR=base)
    assert done.code == 0, done
    with castore.open(pipelines.folder / base / "default" / "store", create=False) as store:
        assert store.gets(f"pipelines/{done.id}/data/made") == b"42"
    assert os.listdir(pipelines.folder / "sub") == []


def test_a_run_goes_on_where_nothing_can_be_told_on_stderr(pipelines: Pipelines) -> None:
    text = 'def build():\n    return co.Exec("echo 1", requires_docker=True)\n'
    pipelines.write("pipeline.py", text)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "pipeline.py", "--run"],
            cwd=pipelines.folder,
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
        )
    assert done.returncode == 0
    assert b"1 done" in done.stdout


def test_a_run_that_can_tell_nothing_says_why(pipelines: Pipelines) -> None:
    pipelines.write("pipeline.py", "def build():\n    return co.Exec('echo 1')\n")
    command = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "pipeline.py", "--run"]
    done = subprocess.run(command, cwd=pipelines.folder, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"pipeline.py: stdout is closed\n")
