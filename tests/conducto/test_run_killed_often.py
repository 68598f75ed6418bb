"""A run whose runner is killed at any moment, again and again, and resumed each time."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from pipelines import Pipelines, processes_with, wait_for

import castore
from conducto import context

NODES = 40
LEAF = re.compile(r".*/\d+")
PIPELINE = """
    def some(begin: int, end: int) -> co.Parallel:
        tree = co.Parallel()
        for number in range(begin, end):
            wait = f"sh -c 'sleep 0.0{{number % 7}}' {mark}"
            tree[str(number)] = co.Exec(f"echo $CONDUCTO_NODE >> ran; {{wait}}")
        return tree

    def build() -> co.Serial:
        root = co.Serial()
        root["first"] = some(0, {half})
        root["lazy"] = co.Lazy(some, {half}, {nodes})
        return root
"""


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_what_is_recorded_as_done_is_not_run_again(pipelines: Pipelines, seed: int) -> None:
    rng = random.Random(seed)
    mark = f"mark-{seed}"
    pipelines.write("pipeline.py", PIPELINE.format(mark=mark, half=NODES // 2, nodes=NODES))
    words, run_id, kills = ["pipeline.py", "--run", "-j3"], "", 0
    settled: dict[str, int] = {}  # how often those that were recorded as done had run by then
    while True:
        run_id, was_killed = _run_for(pipelines, words, rng.randrange(40), run_id)
        kills += was_killed
        wait_for(lambda: not processes_with(mark))
        ran = Counter(pipelines.lines("ran"))
        assert {node: ran[node] for node in settled} == settled
        states = pipelines.states(run_id)
        done = {node for node, state in states.items() if state == "done" and LEAF.fullmatch(node)}
        assert settled.keys() <= done
        settled = {node: ran[node] for node in done}
        assert all(settled.values())
        if not was_killed:
            break
        words = ["-m", "conducto", "run", "--resume", run_id, "-j3"]
    assert kills >= 1
    assert len(settled) == NODES
    assert set(states.values()) == {"done"}
    with castore.open(context.store_url()) as store:
        assert store.check(read_data=True).exit_code == 0


def _run_for(pipelines: Pipelines, words: list[str], lines: int, run_id: str) -> tuple[str, bool]:
    """Run until it has said so many lines, and kill it then; the run's id, and whether it was."""
    with pipelines.begin(*words) as runner:
        assert runner.stdout is not None
        first = runner.stdout.readline()
        run_id = run_id or re.findall(r"pipeline (\w+)", first)[0]
        said = sum(1 for _ in zip(range(lines), runner.stdout, strict=False))
        if said == lines:
            runner.kill()
        _, err = runner.communicate(timeout=120)
    assert err == ""
    assert runner.returncode in (0, -9)
    return run_id, runner.returncode == -9
