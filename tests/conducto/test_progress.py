"""What may run when: the machine alone, without a process."""

from __future__ import annotations

import random
import time

import pytest

import conducto as co
from conducto.run.progress import Progress
from conducto.run.states import ENDED, Attempts, State, states_of


def group(kind: type[co.Node], **children: co.Node | str) -> co.Node:
    root = kind()
    for name, child in children.items():
        root[name] = co.Exec(child) if isinstance(child, str) else child
    return root


def play(
    root: co.Node, fails: frozenset[str] = frozenset(), done: frozenset[str] = frozenset()
) -> tuple[list[str], dict[str, str]]:
    """Run one at a time; the order, and the states."""
    progress, order = Progress(root, done), []
    while (node := progress.next()) is not None:
        order.append(str(node))
        progress.ended(node, State.ERROR if str(node) in fails else State.DONE)
    assert progress.is_over
    return order, {str(node): str(state) for node, state in progress.states.items()}


def example() -> co.Node:
    return group(
        co.Serial,
        a="",
        p=group(co.Parallel, x="", y=group(co.Serial, u="", v="")),
        b="",
    )


def test_serial_in_order_parallel_at_once() -> None:
    progress = Progress(example())
    first = progress.next()
    assert str(first) == "/a"
    assert progress.next() is None
    assert first is not None
    progress.ended(first, State.DONE)
    assert [str(progress.next()), str(progress.next())] == ["/p/x", "/p/y/u"]
    assert progress.next() is None


def test_a_serial_stops_at_the_first_failure() -> None:
    order, states = play(example(), frozenset({"/p/y/u"}))
    assert order == ["/a", "/p/x", "/p/y/u"]
    assert (states["/"], states["/p"], states["/p/y"], states["/p/x"]) == (
        "error", "error", "error", "done",
    )  # fmt: skip
    assert "/b" not in states


def test_a_serial_that_does_not_stop_fails_at_the_end() -> None:
    root = example()
    assert isinstance(root, co.Serial)
    root.stop_on_error = False
    order, states = play(root, frozenset({"/a"}))
    assert (order[-1], states["/"], states["/b"]) == ("/b", "error", "done")


def test_suppressed_errors_and_skipped_nodes() -> None:
    root = example()
    root["p"].suppress_errors = True
    root["a"].skip = True
    order, states = play(root, frozenset({"/p/x"}))
    assert order == ["/p/x", "/p/y/u", "/p/y/v", "/b"]
    assert (states["/"], states["/p"], states["/a"]) == ("done", "done", "skipped")


def test_what_was_done_is_not_run_again() -> None:
    order, states = play(example(), done=frozenset({"/a", "/p/y/u"}))
    assert order == ["/p/x", "/p/y/v", "/b"]
    assert states["/"] == "done"


def test_long_and_empty_trees() -> None:
    root = co.Serial()
    for number in range(5000):
        root[str(number)] = co.Exec("")
    done = frozenset(str(node) for node in root.stream())
    assert play(root, done=done) == ([], {**dict.fromkeys(done, "done"), "/": "done"})
    assert play(group(co.Serial, a=co.Parallel(), b=co.Serial()))[1]["/"] == "done"
    assert play(co.Exec(""))[0] == ["/"]


def test_max_concurrent_bounds_what_runs_below() -> None:
    root = group(co.Parallel, a=group(co.Parallel, x="", y="", z=""), b="")
    root["a"].max_concurrent = 2
    progress = Progress(root)
    running = [progress.next() for _ in range(3)]
    assert [str(node) for node in running] == ["/a/x", "/a/y", "/b"]
    assert progress.next() is None
    assert running[0] is not None
    progress.ended(running[0], State.DONE)
    assert str(progress.next()) == "/a/z"
    assert progress.next() is None


def test_ten_thousand_that_wait_for_one_cost_little() -> None:
    """What waits is not looked through each time: that would be a hundred million looks."""
    root = co.Parallel(max_concurrent=1)
    for number in range(10_000):
        root[str(number)] = co.Exec("")
    began = time.process_time()
    order, _ = play(root)
    assert order == [f"/{number}" for number in range(10_000)]
    assert time.process_time() - began < 5


def test_thousands_of_bounds_cost_little() -> None:
    """Nor are all the groups looked through that wait, for themselves or for one above them."""
    root = co.Parallel(max_concurrent=2)
    for number in range(2000):
        root[str(number)] = group(co.Parallel, x="", y="")
        root[str(number)].max_concurrent = 1
    began = time.process_time()
    order, _ = play(root)
    assert sorted(order) == sorted(f"/{number}/{name}" for number in range(2000) for name in "xy")
    assert time.process_time() - began < 4


def test_nothing_runs_without_a_runner() -> None:
    root = group(co.Parallel, a="", b="", s=group(co.Serial, x="", y=""), t=co.Parallel())
    execs = {"/a": Attempts("/a", State.ERROR), "/s/x": Attempts("/s/x", State.DONE)}
    for is_alive, state in ((True, State.RUNNING), (False, State.KILLED)):
        states = states_of(root, execs, is_alive=is_alive)
        assert (states[root], states[root["s"]]) == (state, state)
        assert (states[root["b"]], states[root["t"]]) == (State.PENDING, State.DONE)
    assert states_of(root, {}, is_alive=False)[root["s"]] == State.PENDING


def test_what_was_not_begun_is_pending_though_there_is_nothing_to_run_in_it() -> None:
    """Such as what a Lazy will be."""
    root = group(co.Serial, a="", lazy=co.Lazy("make"), b=group(co.Serial, e=co.Parallel()))
    nothing = states_of(root, {}, is_alive=False)
    assert set(nothing.values()) == {State.PENDING}
    failed = states_of(root, {"/a": Attempts("/a", State.ERROR)}, is_alive=False)
    assert failed.pop(root) == failed.pop(root["a"]) == State.ERROR
    assert set(failed.values()) == {State.PENDING}
    execs = {"/a": Attempts("/a", State.DONE)}
    assert states_of(root, execs)[root["lazy"]] == State.PENDING
    execs["/lazy/Generate"] = Attempts("/lazy/Generate", State.DONE)
    assert set(states_of(root, execs).values()) == {State.DONE}


def test_one_that_runs_again_comes_last() -> None:
    root = group(co.Parallel, a="", b="")
    progress = Progress(root)
    first = progress.next()
    assert first is not None
    progress.again(first)
    assert [str(progress.next()), str(progress.next())] == ["/b", "/a"]


def test_one_that_runs_again_gives_its_room_back() -> None:
    root = group(co.Parallel, a="", b="")
    root.max_concurrent = 1
    progress = Progress(root)
    first = progress.next()
    assert first is not None
    progress.again(first)
    second = progress.next()
    assert str(second) == "/b"
    assert second is not None
    progress.ended(second, State.DONE)
    assert progress.next() is first


def test_a_group_with_a_failure_goes_on_while_others_wait() -> None:
    root = group(co.Parallel, a="", b="")
    execs = {"/a": Attempts("/a", State.ERROR)}
    assert states_of(root, execs)[root] == State.RUNNING
    assert states_of(root, execs, is_alive=False)[root] == State.KILLED
    execs["/b"] = Attempts("/b", State.DONE)
    assert states_of(root, execs)[root] == State.ERROR


@pytest.mark.parametrize("seed", range(40))
def test_any_tree_ends_and_its_states_agree_with_those_of_its_commands(seed: int) -> None:
    """What the machine says of groups is what is said of them from their commands alone, as `show`
    does from the store."""
    rng = random.Random(seed)
    root = grown(rng, 3)
    progress, running, execs = Progress(root), [], {}
    while not progress.is_over:
        node = root
        while rng.random() < 0.7 and (node := progress.next()) is not None:
            running.append(node)
            execs[str(node)] = Attempts(str(node), State.RUNNING)
            assert all(room(each, running) >= 0 for each in node.lineage())
        if node is None:
            assert not any(may_begin(each, progress, running) for each in root.stream())
        if not running:
            continue
        node = running.pop(rng.randrange(len(running)))
        state = State.ERROR if rng.random() < 0.2 else State.DONE
        execs[str(node)].state = state
        progress.ended(node, state)
    assert not running
    assert progress.next() is None
    derived = states_of(root, execs)
    assert derived[root] == progress.states[root]
    for node in root.stream():
        state = progress.states.get(node, State.PENDING)
        if any(above.skip for above in node.lineage()):
            assert derived[node] == State.SKIPPED
        elif state in ENDED or state is State.PENDING:
            assert derived[node] == state, node


def room(node: co.Node, running: list[co.Exec]) -> float:
    """How many more may begin below it."""
    limit = float("inf") if node.max_concurrent is None else node.max_concurrent
    return limit - sum(node in each.lineage() for each in running)


def may_begin(node: co.Node, progress: Progress, running: list[co.Exec]) -> bool:
    if not isinstance(node, co.Exec) or node.skip or node in progress.states:
        return False
    parent = node.parent
    if parent is None or progress.states.get(parent) != State.RUNNING:
        return parent is None
    before = [*parent.children.values()][: [*parent.children].index(node.name)]
    if parent.is_ordered and not all(progress.states.get(each) in ENDED for each in before):
        return False
    return all(room(each, running) > 0 for each in node.lineage())


def grown(rng: random.Random, depth: int) -> co.Node:
    if depth == 0 or rng.random() < 0.3:
        return co.Exec("", skip=rng.random() < 0.1)
    node: co.Node
    if rng.random() < 0.5:
        node = co.Serial(stop_on_error=rng.random() < 0.7)
    else:
        node = co.Parallel(max_concurrent=rng.choice([None, 1, 2]))
    node.suppress_errors = rng.random() < 0.2
    for number in range(rng.randrange(5)):
        node[str(number)] = grown(rng, depth - 1)
    return node
