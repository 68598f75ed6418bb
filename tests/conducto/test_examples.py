"""The pipelines of docs/examples, run as they say."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from pipelines import Done, Pipelines
from places import ROOT

from conducto import context
from conducto.nodes.serialization import loads

EXAMPLES = ROOT / "docs" / "examples"


pytest_plugins = ["modes"]


def run(pipelines: Pipelines, name: str, *argv: str) -> Done:
    done = pipelines.python(str(EXAMPLES / name), *argv, "--run", "-j2")
    assert (done.code, done.err) == (0, ""), done
    return done


def log(pipelines: Pipelines, done: Done, node: str) -> str:
    return pipelines.conducto("logs", done.id, node).out


def test_each_example_is_run_here() -> None:
    here = {name for name in globals() if name.startswith("test_the_")}
    assert here == {f"test_the_{path.stem}" for path in EXAMPLES.glob("*.py")}


def test_what_the_document_shows_is_what_is_printed(pipelines: Pipelines) -> None:
    blocks = re.findall(
        r"```(\w*)\n(.*?)```", (ROOT / "docs" / "pipelines.md").read_text(), re.DOTALL
    )
    [program, tree, lazy] = [text for kind, text in blocks if kind in ("", "python")]
    (pipelines.folder / "pipeline.py").write_text(program)
    assert pipelines.python("pipeline.py") == (0, tree, "")
    assert loads(lazy).pretty() == "/\n└─ a   echo a"


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*.py"))])
def test_each_is_printed(pipelines: Pipelines, name: str) -> None:
    printed = pipelines.python(str(EXAMPLES / name))
    assert (printed.code, printed.err) == (0, "")
    assert printed.out.startswith("/\n├─0 ")


@pytest.mark.parametrize("mode", ["cloud"], indirect=True)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wordcount.py", ["--path=text", "--part_bytes=9001"]),
        pytest.param("daily_dumps.py", ["--days=2"], marks=pytest.mark.long),
        pytest.param("build_cache.py", ["--sources=src", "--out=out"], marks=pytest.mark.long),
        pytest.param("each_name.py", ["--stores=2"], marks=pytest.mark.long),
    ],
)
def test_on_s3(pipelines: Pipelines, mode: str, name: str, words: list[str]) -> None:
    (pipelines.folder / "text").write_text("some words " * 2000)
    (pipelines.folder / "src").mkdir()
    (pipelines.folder / "src" / "a.py").write_text("print('a')\n")
    done = run(pipelines, name, *words)
    assert context.store_url().startswith("s3://")
    assert {*pipelines.states(done.id).values()} == {"done"}


def test_the_wordcount(pipelines: Pipelines) -> None:
    """Also of words that lie across the ends of parts."""
    words = [f"word{number % 7}{'x' * (number % 23)}" for number in range(3000)]
    text = " ".join(words) + "\n"
    (pipelines.folder / "text").write_text(text)
    done = run(pipelines, "wordcount.py", "--path=text", "--part_bytes=9001")
    parts = [node for node in pipelines.states(done.id) if node.startswith("/count/Execute/")]
    assert len(parts) == -(-len(text) // 9001) > 4
    counted = Counter(words)
    most = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:3]
    assert log(pipelines, done, "total").splitlines() == [
        "3000 words",
        *(f"{word} {times}" for word, times in most),
    ]


def test_the_daily_dumps(pipelines: Pipelines) -> None:
    done = run(pipelines, "daily_dumps.py", "--days=3")
    assert log(pipelines, done, "look/changed on day 2") == "day 2: 50 paid, 100 new\n"
    staged = pipelines.conducto("show", done.id, "--json")
    assert json.loads(staged.out)["state"] == "done"
    sizes = [int(log(pipelines, done, f"dump/day {day}").split()[2]) for day in range(3)]
    stored = log(pipelines, done, "look/stored").split()
    assert int(stored[0]) > sum(sizes)
    assert int(stored[5]) < sum(sizes) / 2
    packs = sum(path.stat().st_size for path in pipelines.folder.parent.rglob("*.pack"))
    assert packs < sum(sizes) / 2


def test_the_build_cache(pipelines: Pipelines) -> None:
    sources = pipelines.folder / "src"
    sources.mkdir()
    (sources / "a.py").write_text("print('a')\n")
    words = ("build_cache.py", "--sources=src", "--out=out/build")
    (pipelines.folder / "out").mkdir()
    first = run(pipelines, *words)
    assert log(pipelines, first, "build").startswith("built ")
    for path in (pipelines.folder / "out" / "build").iterdir():
        path.unlink()
    again = run(pipelines, *words)
    assert log(pipelines, again, "build").startswith("restored ")
    assert log(pipelines, again, "test") == "1 files are well\n"
    (sources / "b.py").write_text("print('b')\n")
    assert log(pipelines, run(pipelines, *words), "build").startswith("built ")


def test_the_each_name(pipelines: Pipelines) -> None:
    done = run(pipelines, "each_name.py", "--stores=4")
    assert log(pipelines, done, "check/Execute/3.csv") == "sales/3.csv comes to 45\n"
    assert json.loads(log(pipelines, done, "list")) == [f"checked/{n}.csv" for n in range(4)]
