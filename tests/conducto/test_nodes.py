"""Trees of nodes: how they are made, what they refuse, and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from contextvars import copy_context
from pathlib import Path

import pytest

import conducto as co
from conducto.nodes.image import ContainerReuseContext
from conducto.nodes.serialization import dumps, loads
from conducto.shared.log import unindent


def tree() -> co.Serial:
    root = co.Serial()
    root["build"] = co.Exec("make")
    root["test"] = co.Parallel()
    root["test/fast"] = co.Exec("make test\nmake more")
    root["test"]["slow"] = co.Exec("make slow")
    return root


def test_a_tree_is_printed() -> None:
    assert tree().pretty().splitlines() == [
        "/",
        "├─0 build   make",
        "└─1 test",
        "  ├─ fast   make test\\nmake more",
        "  └─ slow   make slow",
    ]


def test_numbers_are_as_wide_as_the_last() -> None:
    root = co.Serial()
    for number in range(11):
        root[f"n{number}"] = co.Parallel()
    assert root.pretty().splitlines()[1] == "├─00 n0"


def test_paths_and_names() -> None:
    root = tree()
    assert [str(node) for node in root.stream()] == [
        "/", "/build", "/test", "/test/fast", "/test/slow",
    ]  # fmt: skip
    assert root.name == "/"
    slow = root["test/slow"]
    assert (slow.name, str(slow), slow.parent) == ("slow", "/test/slow", root["test"])
    assert slow["/build"] is root["build"]
    assert root["test//slow"] is slow
    assert "test/slow" in root
    assert "test/none" not in root
    with pytest.raises(KeyError, match="no node 'none' in <Parallel /test>"):
        root["test/none"]
    with pytest.raises(TypeError):
        list(root)  # type: ignore[call-overload]


def test_a_node_made_within_a_with_attaches_itself_by_its_name() -> None:
    with co.Serial() as root:
        co.Exec("a", name="first")
        with co.Parallel(name="then"):
            co.Exec("b", name="one")
            root["last"] = co.Exec("c")  # one without a name is for whoever puts it somewhere
    assert [str(node) for node in root.stream()] == ["/", "/first", "/then", "/then/one", "/last"]
    with pytest.raises(ValueError, match="within a `with`"):
        co.Exec("a", name="x")
    with root, pytest.raises(ValueError, match="no '/'"):
        co.Exec("a", name="x/y")


def lose(error: Exception | None = None) -> None:
    with co.Serial() as root, co.Serial(name="inner"):
        root["put"] = co.Exec("put somewhere")
        co.Exec("make lost")
        if error is not None:
            raise error


def test_a_node_that_nobody_can_put_anywhere_is_an_error() -> None:
    """It has no name, so that it did not attach itself, and would never run."""
    with pytest.raises(co.TreeError, match="put nowhere in <Serial /inner>: Exec make lost"):
        lose()
    with pytest.raises(LookupError):  # that is what went wrong
        lose(LookupError())
    text = dumps(co.Lazy("echo"))
    with co.Serial() as root:
        root["read"] = loads(text)
        later = co.Exec("later")
    root["later"] = later
    assert "later" in root


def test_what_a_tree_refuses() -> None:
    root = tree()
    for put, words in (
        (lambda: root.__setitem__("build", co.Exec("x")), "there is a node 'build'"),
        (lambda: root.__setitem__("again", root["build"]), "is in a tree already"),
        (lambda: root["test"].__setitem__("loop", root), "can't be below itself"),
        (lambda: root["build"].__setitem__("x", co.Exec("x")), "is a command"),
    ):
        with pytest.raises(co.TreeError, match=words):
            put()
    for name in ("", ".", "..", "a\0", "test/"):
        with pytest.raises(ValueError):
            root[name] = co.Exec("x")
    with pytest.raises(TypeError, match="to be a node"):
        root["text"] = "make"  # type: ignore[assignment]
    with pytest.raises(KeyError):
        root["none/x"] = co.Exec("x")
    with pytest.raises(TypeError, match="a node's path is text, not 5"):
        root[5]  # type: ignore[index]


def test_a_with_that_ends_before_the_one_in_it_is_an_error() -> None:
    def build() -> None:
        with ExitStack() as inner, co.Serial():
            inner.enter_context(co.Parallel(name="inner"))

    with pytest.raises(co.TreeError, match="is not that of <Serial /"):
        copy_context().run(build)


def test_options_and_what_is_inherited() -> None:
    root = tree()
    root.set(
        env={"A": "1", "B": "1"}, max_time="5m", retries=2, image="python:3.12", tags="nightly"
    )
    root["test"].set(env={"B": "2"}, cpu=2, mem=4, requires_docker=True, doc="*tests*")
    slow = root["test/slow"]
    slow.max_time = 1.5
    slow.image = co.Image("bash:5", copy_dir=".")
    assert slow.environment() == {"A": "1", "B": "2"}
    assert (slow.max_time_s(), root["build"].max_time_s()) == (1.5, 300)
    assert co.Exec("x").max_time_s() == 4 * 3600
    assert (slow.inherited("retries"), slow.inherited("cpu"), slow.inherited("gpu")) == (2, 2, None)
    assert root["build"].image == co.Image("python:3.12")
    assert slow.image.image == "bash:5"
    assert root.tags == ["nightly"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_time": "5 min"},
        {"max_time": 0},
        {"max_time": float("nan")},
        {"max_concurrent": 0},
        {"retries": -1},
        {"env": {"A=": "x"}},
        {"env": {"A": 1}},
        {"tags": [1]},
        {"image": 1},
        {"cpu": "two"},
        {"gpu": -1},
        {"mem": float("inf")},
        {"colour": "red"},
        {"same_container": co.SameContainer.NEW, "container_reuse_context": "new"},
    ],
)
def test_options_that_can_not_be(options: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        co.Parallel(**options)  # type: ignore[arg-type]
    node = co.Parallel()
    for option in options.keys() & {
        "max_time",
        "max_concurrent",
        "retries",
        "env",
        "tags",
        "image",
    }:
        with pytest.raises((ValueError, TypeError)):
            setattr(node, option, options[option])


def test_what_containers_had_is_kept() -> None:
    node = co.Exec(
        "x", same_container=co.SameContainer.NEW, docker_run_args=["--privileged"], gpu=1
    )
    assert node.container_reuse_context == ContainerReuseContext.NEW
    image = co.Image(
        dockerfile="Dockerfile",
        context=".",
        copy_dir="code",
        reqs_packages=["wget"],
        reqs_docker=True,
    )
    assert image.asks_for_containers() == ["dockerfile", "context", "reqs_packages", "reqs_docker"]
    assert co.Image(**image.to_dict()) == image
    assert repr(co.Image("bash:5", reqs_py=["x"])) == "Image(image='bash:5', reqs_py=['x'])"
    assert co.Image().asks_for_containers() == []
    with pytest.raises(TypeError, match="a list of requirements"):
        co.Image(reqs_py="numpy")


def test_a_folder_of_an_image_is_beside_the_file_that_makes_it() -> None:
    here = Path(__file__).parent
    assert co.Image(copy_dir=".").folder == str(here)
    assert co.Image(copy_dir="../support").folder == str(here.parent / "support")
    assert co.Image(copy_dir=".", docker_auto_workdir=False).folder is None
    assert co.Image("python:3").folder is None


def test_copy_repo_is_the_root_of_the_repository(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    image = co.Image(copy_repo=True, instantiation_directory=str(inner))
    (tmp_path / ".git").mkdir()
    assert image.folder == str(tmp_path)


def test_a_command_has_no_margin() -> None:
    command = co.Exec(
        """
        set -e
        if true; then
            echo yes
        fi
        """
    ).command
    assert command == "set -e\nif true; then\n    echo yes\nfi"
    assert co.Exec("python -c 'if 1:\n    print(1)'").command == "python -c 'if 1:\n    print(1)'"
    assert co.shared.log.unindent("\n  a\n    b\n") == "a\n  b"
    for wrong in (lambda: co.Exec(3), lambda: co.Exec("echo", "hi")):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            wrong()


def test_a_tree_as_json() -> None:
    root = tree()
    root.stop_on_error = False
    root["lazy"] = co.Lazy("echo", node_type=co.Serial)
    image = co.Image("bash:5", copy_dir=".", reqs_py=["x==1"], path_map={".": "/x"})
    root.set(env={"A": "ä\udcff"}, max_concurrent=3, image=image, title="t", tags=["a"], retries=0)
    root.set(gpu=1, mem=2)
    root["build"].set(skip=True, suppress_errors=True, max_time="2h", doc="*d*", gpu=0, mem=0)
    text = dumps(root)
    assert "\n" not in text
    again = loads(text)
    assert dumps(again) == text
    assert again.pretty() == root.pretty()
    assert isinstance(again["lazy"], co.Lazy)
    assert isinstance(again["lazy/Execute"], co.Serial)
    assert (again.image, again.environment()) == (image, {"A": "ä\udcff"})
    assert again["build"].skip
    assert [again["build"].inherited(name) for name in ("cpu", "gpu", "mem")] == [None, 0, 0]
    assert isinstance(again, co.Serial)
    assert again.stop_on_error is False
    assert again.retries == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"type": "Serial"}',
        '{"conducto": 2, "type": "Serial"}',
        '{"conducto": 1}',
        '{"conducto": 1, "type": "Other"}',
        '{"conducto": 1, "type": "Exec"}',
        '{"conducto": 1, "type": "Exec", "command": "x", "children": {"a": {"type": "Serial"}}}',
        '{"conducto": 1, "type": "Serial", "children": {"a/b": {"type": "Serial"}}}',
        '{"conducto": 1, "type": "Serial", "children": []}',
        '{"conducto": 1, "type": "Serial", "options": {"colour": 1}}',
        '{"conducto": 1, "type": "Serial", "options": {"mem": [1]}}',
        '{"conducto": 1, "type": "Serial", "children": {"\\ud800": {"type": "Serial"}}}',
        '{"conducto": 1, "type": "Exec", "command": 5}',
        '{"conducto": 1, "type": "Exec", "command": "x", "image": {"copy_dir": 5}}',
        '{"conducto": 1, "type": "Exec", "command": "x", "image": {"reqs_py": [1]}}',
        '{"conducto": 1, "type": "Exec", "command": "x", "image": {"shell": 1}}',
        '{"conducto": 1, "type": "Exec", "image": {"instantiation_directory": 1}, "command": ""}',
        '{"conducto": 1, "type": "Serial", "options": {"max_time": "x"}}',
        '{"conducto": 1, "type": "Serial", "image": {"colour": 1}}',
        '{"conducto": 1, "type": "Lazy"}',
        '{"conducto": 1, "type": "Lazy", "children": '
        '{"Generate": {"type": "Serial"}, "Execute": {"type": "Serial"}}}',
    ],
)
def test_a_malformed_tree_is_refused(text: str) -> None:
    with pytest.raises(co.TreeError):
        loads(text)


def test_a_tree_that_is_too_deep_is_refused() -> None:
    deep = root = co.Serial()
    for _ in range(250):
        deep["x"] = deep = co.Serial()
    with pytest.raises(co.TreeError, match="deeper"):
        dumps(root)
    document: dict[str, object] = {"type": "Serial"}
    for _ in range(250):
        document = {"type": "Serial", "children": {"x": document}}
    with pytest.raises(co.TreeError, match="deeper"):
        loads(json.dumps({"conducto": 1, **document}))


def documented() -> str:
    """Says it.

    All of it.
    """
    return co.util.magic_doc()


def undocumented() -> str:
    return co.util.magic_doc()


def documented_in_words() -> str:
    """Says it."""
    return co.util.magic_doc(doc_only=True)


def test_magic_doc() -> None:
    assert documented_in_words() == "Says it."
    assert documented() == (
        "Says it.\n\nAll of it.\n\n"
        "```python\ndef documented() -> str:\n    return co.util.magic_doc()\n```"
    )
    assert undocumented().startswith((__doc__ or "") + "\n\n```python\ndef undocumented")
    assert co.Exec(documented).doc == "Says it.\n\nAll of it."
    assert co.util.magic_doc(func=documented) == documented()
    assert co.util.magic_doc(func=documented, doc_only=True) == "Says it.\n\nAll of it."
    assert co.util.magic_doc(func=undocumented) == undocumented()


class Trees:
    def build(self) -> str:
        """A method's."""
        co.Exec("""
echo hello
""")
        return co.util.magic_doc()


def test_magic_doc_of_a_method_with_text_that_is_indented_less() -> None:
    said = Trees().build()
    assert said.startswith("A method's.\n\n```python\n")
    assert '"""\necho hello\n"""' in said
    assert said.count("A method's.") == 1


def commented() -> list[str]:
    """# This is no comment.

    # Nor is this.
    """
    none = co.util.magic_doc(comment=True)
    # Counts all words:
    #
    #     as a list is indented
    said = "here"  # and this stands behind code
    return [
        none,
        co.util.magic_doc(comment=True),
        said,
    ]


def test_magic_doc_of_comments() -> None:
    above, said, _ = commented()
    assert said == "Counts all words:\n\n    as a list is indented"
    assert above == co.util.magic_doc(func=commented, comment=True)
    assert "comment" not in above


# Made by hand.
def with_a_comment() -> None: ...


def test_magic_doc_of_the_comment_above_a_function() -> None:
    assert co.util.magic_doc(func=with_a_comment, comment=True) == "Made by hand."
    assert co.util.magic_doc(func=unindent, comment=True) == ""  # its file has no comment


def wrongly_annotated() -> NotThere: ...  # type: ignore[name-defined]  # noqa: F821


def test_names_of_the_former_conducto(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = co.lazy_py(documented, max_time="5m")
    assert (type(one), one.doc, one.max_time) == (co.Exec, "Says it.\n\nAll of it.", "5m")
    assert type(co.lazy_py(tree)) is co.Lazy
    assert type(co.lazy_py(wrongly_annotated)) is co.Exec
    for shell in (
        co.lazy_shell("python x.py", co.Serial, {"A": "1"}, doc="x"),
        co.lazy_shell("python x.py", node_type=co.Serial, env={"A": "1"}, doc="x"),
    ):
        assert (type(shell), shell.env, shell.doc) == (co.Lazy, {"A": "1"}, "x")
        assert isinstance(shell["Execute"], co.Serial)
        assert shell["Generate"].command == "python x.py"
    assert co.lazy_shell("x").env == {}
    monkeypatch.chdir(tmp_path)
    here = os.path.realpath(__file__)
    assert co.relpath(os.path.basename(here)) == here
    assert co.relpath(Path("..")) == os.path.dirname(os.path.dirname(here))
    assert co.relpath("/there/is/none") == "/there/is/none"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, False),
        *((each, False) for each in ("", "0", " False ", "n", "no", "off", "None", "0.0")),
        *((each, True) for each in ("1", "true", "Yes", "2", "anything")),
    ],
)
def test_env_bool(monkeypatch: pytest.MonkeyPatch, text: str | None, says: bool) -> None:
    monkeypatch.delenv("FORCE", raising=False)
    if text is not None:
        monkeypatch.setenv("FORCE", text)
    assert co.env_bool("FORCE") is co.util.env_bool("FORCE") is says


def test_importing_conducto_loads_no_nodes_and_is_quick() -> None:
    program = (
        "import time; began = time.process_time(); import conducto; import sys\n"
        "took = time.process_time() - began\n"
        "loaded = [m for m in sys.modules if m.startswith(('conducto.nodes', 'conducto.run'))]\n"
        "print(took * 1000, loaded)\n"
        "conducto.Exec, conducto.main, conducto.util, conducto.nb, conducto.shared.log\n"
        "assert set(conducto.__all__) <= set(dir(conducto))\n"
        "print([n for n in conducto.__all__ if not hasattr(conducto, n)])"
    )
    times = []
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ,
        ).stdout.splitlines()
        took, _, loaded = out[0].partition(" ")
        times.append(float(took))
        assert (loaded, out[1]) == ("[]", "[]")
    assert min(times) <= 60, times
