"""How a run is sent to a cluster, and what becomes of attempts whose worker is gone: as far as that
needs no cluster."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from pipelines import Pipelines

from conducto import Exec, Parallel
from conducto.arguments import UsageError
from conducto.errors import RunError
from conducto.run import backend
from conducto.run.attempt import Attempted
from conducto.run.executor import Outcome
from conducto.run.launch import launch
from conducto.run.options import RunOptions, take_run_options
from conducto.run.states import State


@pytest.mark.parametrize("words", [["--cluster", "tcp://a:1"], ["--cluster=tcp://a:1"]])
def test_the_address_is_taken(words: list[str]) -> None:
    left, options = take_run_options(["build", *words, "--run", "x"], {})
    assert (left, options.cluster, options.run) == (["build", "x"], "tcp://a:1", True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cluster", "tcp://a:1"], "--cluster goes with --run"),
        (["--run", "--cluster"], "--cluster takes the address"),
        (["--local", "--cluster=a:1"], "--local runs the tree here"),
    ],
)
def test_wrong_usage(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        take_run_options(words, {})


def test_a_functions_own_cluster_comes_first() -> None:
    words, options = take_run_options(["--cluster", "blue", "--run"], {"cluster": False})
    assert (words, options.cluster) == (["--cluster", "blue"], None)


def test_without_dask_nothing_is_begun(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "conducto.run.cluster", raising=False)
    monkeypatch.delitem(sys.modules, "conducto.run.worker", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RunError, match=r"pip install 'castore\[dask\]'"):
        launch(Exec("touch begun"), ["test"], RunOptions(run=True, cluster="tcp://127.0.0.1:1"))
    assert pipelines.conducto("show").out == ""
    assert not (pipelines.folder / "begun").exists()


def test_main_names_the_cluster_of_run_and_not_of_local(pipelines: Pipelines) -> None:
    path = pipelines.write(
        "pipeline.py", 'def build():\n    return co.Exec("echo here", name=None)\n'
    )
    text = path.read_text().replace("default=build", "default=build, cluster='no-address'")
    path.write_text("import sys\nsys.modules['distributed'] = None\n" + text)
    done = pipelines.python("pipeline.py", "--run")
    assert done.code != 0
    assert "castore[dask]" in done.err
    assert done.err.count("\n") == 1
    assert pipelines.python("pipeline.py", "--local").code == 0
    assert pipelines.python("pipeline.py").code == 0


class Losing(backend.LocalBackend):
    """Loses what is called after how often it is to be lost, so often."""

    def run(self, node: Exec, number: int) -> Attempted:
        lost[node.name] += 1
        if lost[node.name] <= int(node.name):
            return Attempted(Outcome(State.KILLED, reason="its worker died"), is_lost=True)
        return super().run(node, number)


lost: Counter[str] = Counter()


def test_what_is_lost_runs_again_beside_its_retries(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost.clear()
    monkeypatch.setattr("conducto.run.launch.LocalBackend", Losing)
    root = Parallel()
    root["1"] = Exec("test -e once || { touch once; exit 3; }", retries=1)
    root["3"] = Exec("echo fine")
    root["4"] = Exec("echo never", retries=5)
    done = pipelines.run(root)
    assert done.code == 1
    assert "/1 killed after" in done.out
    assert "its worker died; it is run again\n" in done.out
    execs = pipelines.load(done.id).execs
    found = {path: (str(each.state), each.attempt) for path, each in execs.items()}
    assert found == {"/1": ("done", 3), "/3": ("done", 4), "/4": ("error", 4)}
    assert execs["/4"].reason == "its worker died, the 4th time: it may be its fault"
