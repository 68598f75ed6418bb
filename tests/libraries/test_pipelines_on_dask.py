"""Pipelines on workers of dask.distributed, each a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from clusters import adapting, begun
from pipelines import Done, Pipelines, processes_with, wait_for

from conducto import Exec, Lazy, Node, Parallel, Serial, api, context
from conducto.errors import RunError
from conducto.nodes.serialization import dumps
from conducto.run.launch import launch, resume
from conducto.run.options import RunOptions

distributed = pytest.importorskip("distributed")

pytest_plugins = ["modes"]
pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("default")]
cloud = pytest.mark.parametrize("mode", ["cloud"], indirect=True)
local = pytest.mark.parametrize("mode", ["local"], indirect=True)
TOKEN = "s3kr1t-of-nobody"

Begin = Callable[..., str]


@pytest.fixture
def begin(pipelines: Pipelines, mode: str, tmp_path: Path) -> Iterator[Begin]:
    """Begins a cluster of workers with the test's environment, and `env`; the address of its
    scheduler. What dies is begun anew."""
    with ExitStack() as stack:

        def begin(
            resources: dict[str, float] | None = None,
            count: int = 2,
            allowed_failures: int = 3,
            **env: str,
        ) -> str:
            cluster = begun(
                [env] * count, tmp_path, allowed_failures=allowed_failures, resources=resources
            )
            address: str = stack.enter_context(cluster).scheduler_address
            return address

        yield begin


def run(root: Node, address: str, capsys: pytest.CaptureFixture[str]) -> Done:
    code = launch(root, ["test"], RunOptions(run=True, cluster=address))
    context.close_stores()
    return Done(code, *capsys.readouterr())


@cloud
def test_a_tree_runs_on_workers(
    begin: Begin, pipelines: Pipelines, capsys: pytest.CaptureFixture[str]
) -> None:
    address = begin({"cpu": 2}, WHERE="on a worker")
    root = Serial(env={"LEVEL": "2"})
    root["first"] = Exec(
        "echo $WHERE $LEVEL $CONDUCTO_NODE; head -c 600000 /dev/zero", cpu=1, mem=3
    )
    root["both"] = Parallel()
    for name in "ab":
        root[f"both/{name}"] = Exec(f"echo {name} > {name}; pwd")
    grown = Parallel()
    grown["data"] = Exec('python -c \'import conducto as co; co.data.pipeline.puts("x", b"1")\'')
    root["lazy"] = Lazy("echo '" + dumps(grown).replace("'", "'\\''") + "'")
    root["again"] = Exec("test -e once || { touch once; echo no; exit 3; }", retries=1)
    done = run(root, address, capsys)
    assert done.code == 0, done
    assert "no worker declares mem" in done.err
    assert pipelines.log(done.id, "/first") == b"on a worker 2 /first\n" + bytes(600_000)
    assert pipelines.log(done.id, "/both/b") == f"{pipelines.folder}\n".encode()
    assert pipelines.log(done.id, "/again", 1) == b"no\n"
    assert "/again failed after" in done.out
    assert "exit code 3; tries left: 1" in done.out
    store = context.open_store()
    assert store.path.startswith("s3://")
    assert store.gets(f"pipelines/{done.id}/data/x") == b"1"
    assert set(pipelines.states(done.id).values()) == {"done"}


@cloud
def test_what_fails_is_not_begun_or_takes_too_long(
    begin: Begin, pipelines: Pipelines, capsys: pytest.CaptureFixture[str]
) -> None:
    address = begin({"cpu": 2})
    root = Parallel()
    root["fails"] = Exec("echo why; test -e mended || exit 3")
    root["long"] = Exec("sleep 60.25", max_time=0.5)
    root["large"] = Exec("true", cpu=3)
    root["nothing"] = Lazy("echo no tree")
    root["last"] = Serial()
    root["last/fails"] = Exec("false")
    root["last/never"] = Exec("true")
    done = run(root, address, capsys)
    assert done.code == 1
    run_as_kept = pipelines.load(done.id)
    found = {path: (str(each.state), each.reason) for path, each in run_as_kept.execs.items()}
    assert found["/fails"] == ("error", "exit code 3")
    assert found["/long"] == ("error", "timed out after 0.5 s")
    assert found["/large"] == ("error", "no worker of the cluster has cpu=3")
    assert "it printed no tree" in found["/nothing/Generate"][1]
    assert "/last/never" not in found
    assert "  | why\n" in done.out
    assert not processes_with("60.25")
    pipelines.write("mended", "")
    assert resume(done.id, RunOptions(run=True, cluster=address)) == 1
    assert "/fails done (attempt 2)" in capsys.readouterr().out


@cloud
@pytest.mark.parametrize("allowed_failures", [3, pytest.param(0, marks=pytest.mark.long)])
def test_a_worker_that_dies_has_its_command_run_again(
    begin: Begin,
    pipelines: Pipelines,
    capsys: pytest.CaptureFixture[str],
    allowed_failures: int,
) -> None:
    """Whether Dask gives its tasks to others, or says at once that they are lost."""
    root = Parallel()
    root["killer"] = Exec(
        "echo $PPID; test -e once || { touch once; sleep 1; kill -9 $PPID; sleep 60.5; }"
    )
    root["other"] = Exec("sleep 3; echo fine")
    done = run(root, begin(allowed_failures=allowed_failures), capsys)
    assert done.code == 0, done
    killed = pipelines.load(done.id).execs["/killer"]
    assert (killed.state, killed.attempt) == ("done", 2)
    assert "/killer killed after" in done.out
    assert "died; it is run again\n" in done.out
    first, second = (pipelines.log(done.id, "/killer", number) for number in (1, 2))
    assert first != second != b""
    assert not processes_with("60.5")
    assert b"fine\n" in (pipelines.log(done.id, "/other", number) for number in (1, 2))


@cloud
@pytest.mark.long
def test_workers_die_at_any_moment(
    begin: Begin, pipelines: Pipelines, capsys: pytest.CaptureFixture[str]
) -> None:
    address = begin(count=3, allowed_failures=100)
    root = Parallel()
    for number in range(40):
        root[f"{number}"] = Exec("echo begun $CONDUCTO_NODE; sleep 0.51; echo ended $CONDUCTO_NODE")
    over, killed = threading.Event(), []

    def kill() -> None:
        choose = random.Random(5)
        with distributed.Client(address, set_as_default=False) as client:
            while not over.wait(choose.uniform(0.5, 3)) and len(killed) < 5:
                wait_for(lambda: over.is_set() or processes_with("0.51"), 120)
                workers = client.run(os.getpid, on_error="ignore").values()
                if workers:
                    killed.append(choose.choice([*workers]))
                    os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    # All six threads are wanted, however many workers are there when it begins.
    code = launch(root, ["test"], RunOptions(run=True, parallel=6, cluster=address))
    context.close_stores()
    done = Done(code, *capsys.readouterr())
    over.set()
    killer.join()
    assert done.code == 0, done
    assert len(killed) > 2
    execs = pipelines.load(done.id).execs.values()
    assert {str(each.state) for each in execs} == {"done"}
    assert max(each.attempt for each in execs) > 1
    for each in execs:
        log = pipelines.log(done.id, each.node, each.attempt).decode()
        assert log == f"begun {each.node}\nended {each.node}\n"
    wait_for(lambda: not processes_with("0.51"))


@local
def test_workers_that_come_later_are_used(
    begin: Begin, pipelines: Pipelines, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands that end when all have begun, on more threads than there are at first."""
    address = begin(count=1)
    root = Parallel(max_time=150)
    for name in "abcd":
        root[name] = Exec(
            f"touch {name}; until test -e a -a -e b -a -e c -a -e d; do sleep 0.1; done"
        )
    come = ["-m", "dask", "worker", address, "--no-dashboard", "--nthreads=2"]

    def join() -> None:
        # Three were handed to two threads, and which of them begin is Dask's to choose.
        wait_for(lambda: len([*pipelines.folder.glob("[a-d]")]) == 2)
        with pipelines.begin(*come, "--death-timeout=60") as worker:
            over.wait()
            worker.terminate()
            worker.communicate()

    over = threading.Event()
    joining = threading.Thread(target=join)
    joining.start()
    done = run(root, address, capsys)
    over.set()
    joining.join()
    assert done.code == 0, done


@local
def test_a_cluster_that_adapts_itself_grows(
    pipelines: Pipelines, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Parallel(max_time=150)
    for name in "abc":
        root[name] = Exec(f"touch {name}; until test -e a -a -e b -a -e c; do sleep 0.1; done")
    with adapting(tmp_path, workers_max=3) as address:
        done = run(root, address, capsys)
    assert done.code == 0, done
    assert "the cluster has no worker yet" in done.err


@local
def test_nothing_runs_on_without_its_runner(begin: Begin, pipelines: Pipelines) -> None:
    pipelines.write(
        "pipeline.py",
        """
        def build():
            root = co.Parallel()
            for i in range(6):
                root[f"{i}"] = co.Exec("echo begun; sleep 61.5")
            return root
        """,
    )
    words = ["pipeline.py", "--run", "--json", f"--cluster={begin()}"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        with pipelines.begin(*words) as process:
            wait_for(lambda: len(processes_with("61.5")) == 4)
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
        assert process.returncode == code, err
        wait_for(lambda: not processes_with("61.5"), 20)
        run_id = json.loads(out.splitlines()[0])["id"]
        execs = pipelines.load(run_id).execs.values()
        assert [str(each.state) for each in execs] == ["killed"] * 5  # one waited
        if number == signal.SIGINT:
            assert {each.reason for each in execs} == {"interrupted"}
            logs = [pipelines.log(run_id, each.node) for each in execs]
            assert sorted(logs) == [b"", *[b"begun\n"] * 4]


@local
@pytest.mark.long
def test_nothing_runs_on_without_the_scheduler(
    pipelines: Pipelines, mode: str, tmp_path: Path
) -> None:
    pipelines.write("pipeline.py", 'def build():\n    return co.Exec("sleep 62.5")\n')
    known = tmp_path / "scheduler.json"
    common = ["--no-dashboard", "--scheduler-file", str(known)]
    with (
        pipelines.begin("-m", "dask", "scheduler", "--port=0", *common) as scheduler,
        pipelines.begin("-m", "dask", "worker", *common, "--death-timeout=30") as worker,
    ):
        try:
            address = json.loads(wait_for(lambda: known.exists() and known.read_text()))["address"]
            runner = pipelines.begin("pipeline.py", "--run", f"--cluster={address}")
            wait_for(lambda: processes_with("62.5"))
            scheduler.kill()
            _, err = runner.communicate(timeout=60)
            assert runner.returncode != 0
            assert err.endswith("pipeline.py: the cluster's scheduler is gone\n")
            wait_for(lambda: not processes_with("62.5"), 20)
        finally:
            scheduler.kill()
            worker.terminate()
            worker.communicate()


@local
def test_workers_that_do_not_have_the_store_are_refused(
    begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = begin(count=1, CONDUCTO_PROFILE="another")
    with pytest.raises(RunError, match="give workers the same CONDUCTO_ variables"):
        run(Exec("true"), address, capsys)
    assert not [*context.open_store().names()]


@local
def test_where_no_scheduler_is(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=r"no scheduler of dask\.distributed answers at"):
        run(Exec("true"), "no-address", capsys)


@local
def test_secrets_are_read_by_workers_and_in_nothing_that_dask_has(
    begin: Begin,
    pipelines: Pipelines,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed = []

    def spied(client: Any, *args: Any, **options: Any) -> Any:
        passed.append(pickle.dumps((args, options)))
        future = submit(client, *args, **options)
        passed.append(pickle.dumps(future.result()))
        return future

    submit = distributed.Client.submit
    monkeypatch.setattr(distributed.Client, "submit", spied)
    api.Secrets().put_user_secrets({"TOKEN": TOKEN})
    root = Parallel()
    root["fails"] = Exec('echo "<$TOKEN>"; printf %s "$TOKEN" | sha256sum; exit 3')
    tree = dumps(Exec("echo @")).replace("@", "'\"$TOKEN\"'")
    root["lazy"] = Lazy(f"echo '{tree}'")
    done = run(root, begin(count=1), capsys)
    assert done.code == 1
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    assert pipelines.log(done.id, "/fails") == f"<***>\n{digest}  -\n".encode()
    assert "the value of a secret in it (TOKEN)" in done.out
    assert len(passed) == 4
    assert not any(TOKEN.encode() in each for each in [*passed, done.out.encode()])
