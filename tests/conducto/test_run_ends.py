"""How runs end that do not go to their end: a killed runner, interrupts, what commands leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from pipelines import Pipelines, Process, processes_with, wait_for

import castore
import conducto as co
from conducto import context
from conducto.errors import RunError
from conducto.run.executor import Executor, Job
from conducto.run.records import Records, Session, process_mark
from conducto.run.states import State

LINUX = Path("/proc/self").exists()
linux_only = pytest.mark.skipif(not LINUX, reason="needs /proc")

# The command's children: one of its group, one of a session of its own, one that is nobody's child.
BUSY = (
    "echo begun; sleep {mark} & setsid sleep {mark} & "
    "(setsid sh -c 'sleep {mark} & sleep {mark}' &) ; sleep {mark}"
)
PIPELINE = """
    def build() -> co.Serial:
        root = co.Serial()
        root["first"] = co.Exec("echo first >> ran; echo it is first")
        root["busy"] = co.Exec('''test -e mended && exit 0; echo busy >> ran; {busy}''')
        root["last"] = co.Exec("echo last >> ran")
        return root
"""


def mark() -> str:
    """How long a process sleeps, and what it can be told by."""
    return str(100_000 + uuid.uuid4().int % 100_000)


def begin(pipelines: Pipelines, number: str) -> tuple[Process, str]:
    """The runner, and its pipeline's id, when five processes sleep and the store knows."""
    pipelines.write("pipeline.py", PIPELINE.format(busy=BUSY.format(mark=number)))
    runner = pipelines.begin("pipeline.py", "--run")
    assert runner.stdout is not None
    run_id = runner.stdout.readline().split()[1]
    wait_for(lambda: len(processes_with(number)) >= 5)
    wait_for(lambda: b"begun" in pipelines.log(run_id, "/busy"))
    context.close_stores()
    return runner, run_id


@linux_only
def test_a_killed_runner_leaves_no_process_and_a_run_that_can_be_resumed(
    pipelines: Pipelines,
) -> None:
    number = mark()
    runner, run_id = begin(pipelines, number)
    with runner:
        by_process = f"is still being run, by process {runner.pid}"
        for verb in (("run", "--resume", run_id), ("archive", run_id)):
            still = pipelines.conducto(*verb)
            assert (still.code, still.out) == (1, "")
            assert by_process in still.err
        with pytest.raises(RuntimeError, match=by_process):
            co.data.archive(run_id)
        script = pipelines.python("-m", "conducto.cli", "data-pipeline", "archive", "--id", run_id)
        assert (script.code, by_process in script.err) == (1, True)
        assert pipelines.conducto("archive", "--older-than=0s").out == "{}\n"
        assert pipelines.states(run_id)["/busy"] == "running"
        runner.kill()
    wait_for(lambda: not processes_with(number))
    assert pipelines.states(run_id) == {
        "/": "killed", "/first": "done", "/busy": "killed", "/last": "pending",
    }  # fmt: skip
    assert "busy  killed: its runner was killed" in pipelines.conducto("show", run_id).out
    assert pipelines.conducto("logs", run_id, "first").out == "it is first\n"
    assert pipelines.conducto("logs", run_id, "busy").out == "begun\n"
    (pipelines.folder / "mended").touch()
    assert pipelines.conducto("run", "--resume", run_id).code == 0
    assert pipelines.lines("ran") == ["first", "busy", "last"]
    assert set(pipelines.states(run_id).values()) == {"done"}
    with castore.open(context.store_url()) as store:
        assert store.check(read_data=True).exit_code == 0


@linux_only
@pytest.mark.sampled(6)
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_ends_its_commands_and_says_so(
    pipelines: Pipelines, kind: signal.Signals
) -> None:
    number = mark()
    runner, run_id = begin(pipelines, number)
    with runner:
        runner.send_signal(kind)
        out, err = runner.communicate(timeout=60)
    assert (runner.returncode, err) == (130, "")
    assert f"to go on with what is not done: conducto run --resume {run_id}\n" in out
    assert processes_with(number) == []
    states = pipelines.states(run_id)
    assert (states["/first"], states["/busy"], states["/last"]) == ("done", "killed", "pending")


@linux_only
def test_a_second_interrupt_does_not_wait_for_what_is_slow_to_end(pipelines: Pipelines) -> None:
    number = mark()
    pipelines.write(
        "pipeline.py",
        f"""
        def build() -> co.Exec:
            return co.Exec("trap 'touch told' TERM; touch begun; while :; do sleep {number}; done")
        """,
    )
    runner = pipelines.begin("pipeline.py", "--run")
    with runner:
        wait_for((pipelines.folder / "begun").exists)
        runner.send_signal(signal.SIGINT)
        wait_for((pipelines.folder / "told").exists)
        runner.send_signal(signal.SIGINT)
        runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert processes_with(number) == []


@linux_only
def test_what_a_command_leaves_ends_with_it_or_with_the_run(pipelines: Pipelines) -> None:
    """In the background of its session it ends with the command; in one of its own, with the run,
    so that a service can be started by one command for the next."""
    number = mark()
    root = co.Serial()
    each = "for each in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $each; echo; done 2> /dev/null"
    count = f"{each} | grep -c '^sleep {number} $'"  # those that have become a sleep by now
    begun = f"until [ $({count}) = 2 ]; do sleep 0.05; done"
    root["leave"] = co.Exec(f"sleep {number} & (setsid sleep {number} &); {begun}")
    root["count"] = co.Exec(count)
    done = pipelines.run(root)
    assert pipelines.conducto("logs", done.id, "count").out == "1\n"
    assert processes_with(number) == []


@linux_only
def test_a_guard_that_is_ended_is_begun_again(tmp_path: Path) -> None:
    """What it knew, the new one knows, too."""
    number = mark()
    program = f"""
import os, signal, subprocess, sys, threading, time
from conducto.run.guard import Guard
guard = Guard("cookie", threading.Lock())
first = subprocess.Popen(["sleep", "{number}"], start_new_session=True)
guard.began(first.pid)
os.kill(guard._process.pid, signal.SIGKILL)
guard._process.wait()
second = subprocess.Popen(["sleep", "{number}"], start_new_session=True)
guard.began(second.pid)
print("begun", flush=True)
time.sleep(1000)
"""
    with Process([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "begun\n"
        wait_for(lambda: len(processes_with(number)) == 2)  # the kernel names them a bit later
        runner.kill()
    wait_for(lambda: not processes_with(number))


@linux_only
def test_a_run_within_a_run_ends_with_it(pipelines: Pipelines) -> None:
    number = mark()
    pipelines.write(
        "inner.py",
        f'def build():\n    return co.Exec("(setsid sleep {number} &); sleep {number}")\n',
    )
    pipelines.write("outer.py", 'def build():\n    return co.Exec("python inner.py --run")\n')
    with pipelines.begin("outer.py", "--run") as runner:
        wait_for(lambda: processes_with(number))
        runner.kill()
    wait_for(lambda: not processes_with(number))


@linux_only
def test_who_reads_no_further_ends_the_run(pipelines: Pipelines) -> None:
    number = mark()
    pipelines.write(
        "pipeline.py",
        f"""
        def build() -> co.Serial:
            root = co.Serial()
            root["a"] = co.Exec("while ! test -e closed; do sleep 0.05; done")
            root["b"] = co.Exec("sleep {number}")
            return root
        """,
    )
    with pipelines.begin("pipeline.py", "--run") as runner:
        assert runner.stdout is not None
        run_id = runner.stdout.readline().split()[1]
        runner.stdout.close()
        (pipelines.folder / "closed").touch()
        assert runner.stderr is not None
        assert runner.stderr.read() == ""
        assert runner.wait(60) == 141
    assert processes_with(number) == []
    assert pipelines.states(run_id)["/"] == "killed"


def test_somebody_elses_run_is_not_resumed(pipelines: Pipelines) -> None:
    """A session that another runner has begun meanwhile."""
    done = pipelines.run(co.Exec("false"))
    records = pipelines.records(done.id)
    assert records.load().sessions == 1
    records.claim(2)
    with pytest.raises(RuntimeError, match="being run by somebody else"):
        records.claim(2)
    still = pipelines.conducto("run", "--resume", done.id)  # that session is ours, and we live
    assert f"is still being run, by process {os.getpid()}" in still.err


def test_of_two_that_resume_at_once_one_does(pipelines: Pipelines) -> None:
    done = pipelines.run(co.Exec("echo x >> ran; sleep 2; test $(wc -l < ran) -gt 1"))
    assert done.code == 1
    both = [pipelines.begin("-m", "conducto", "run", "--resume", done.id) for _ in range(2)]
    said = [runner.communicate(timeout=120) for runner in both]
    assert pipelines.lines("ran") == ["x", "x"]
    codes = sorted(runner.returncode for runner in both)
    if codes != [0, 0]:  # the second one did not come when all was done
        assert codes == [0, 1]
        assert "being run" in "".join(err for _, err in said)


@pytest.mark.parametrize("what", ["resumed", "archived"])
def test_a_runner_ends_that_was_taken_for_dead_and_is_not_the_last_one_any_more(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """As that of a machine that slept while another one resumed the run, or archived it."""
    monkeypatch.setattr("conducto.run.recorder.BEAT_S", 0.05)
    changed = {
        "resumed": "records.store.puts(records.session_key(2), b'{}')",
        "archived": "records.store.delete_prefix(f'pipelines/{records.id}/')",
    }
    pipelines.write(
        "other.py",
        f"""import conducto, os
from conducto import context
from conducto.run.records import Records
records = Records(context.open_store(), os.environ["CONDUCTO_PIPELINE_ID"])
{changed[what]}
""",
    )
    root = co.Serial()
    root["slept"] = co.Exec("python other.py; sleep 100")
    root["never"] = co.Exec("echo never >> ran")
    with pytest.raises(RunError, match="was resumed or archived by somebody else"):
        pipelines.run(root)
    assert pipelines.lines("ran") == []


def test_who_lives() -> None:
    session = Session.here()
    assert session.is_alive
    session.process = "0"  # another process had the number
    assert session.is_alive == (process_mark(os.getpid()) == "0")
    session.host = "another"
    assert session.is_alive
    session.beat -= 3600
    assert not session.is_alive
    session = Session.here()
    session.namespace = "another"  # a container of this machine, with its name
    session.pid = 2**22 + 1  # no process has it here
    assert session.is_alive
    session.beat -= 3600
    assert not session.is_alive
    session = Session.here()
    session.ended = session.began
    assert not session.is_alive
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    assert process_mark(int(child.stdout)) == ""


@linux_only
def test_a_killed_runner_that_nobody_waits_for_does_not_live(pipelines: Pipelines) -> None:
    """As in a container whose first process waits only for its own children."""
    number = mark()
    runner, run_id = begin(pipelines, number)
    with runner:
        runner.kill()
        os.waitid(os.P_PID, runner.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie from now on
        wait_for(lambda: not processes_with(number))
        assert pipelines.states(run_id)["/busy"] == "killed"
        Path("mended").touch()
        assert pipelines.conducto("run", "--resume", run_id).code == 0
        assert pipelines.conducto("archive", run_id).code == 0


def test_a_store_that_fails_ends_the_run(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error, and no run goes on that nothing is known of."""
    number = mark()
    write = castore.Store.transaction

    def fail(store: castore.Store) -> castore.Transaction:
        if (pipelines.folder / "begun").exists():
            raise OSError("the disk is gone")
        return write(store)

    monkeypatch.setattr(castore.Store, "transaction", fail)
    root = co.Serial()
    root["a"] = co.Exec(f"touch begun; sleep 0.3; echo x; sleep {number}")
    with pytest.raises(OSError, match="the disk is gone"):
        pipelines.run(root)
    if LINUX:
        assert processes_with(number) == []


def job(folder: Path, command: str) -> Job:
    return Job("/x", command, "/bin/sh", {"PATH": os.environ["PATH"]}, str(folder), 60.0)


def test_the_executor_by_itself(tmp_path: Path) -> None:
    executor, printed = Executor("cookie"), []
    try:
        for command, state, code, reason in (
            ("echo out; echo err >&2", State.DONE, 0, ""),
            ("exit 3", State.ERROR, 3, "exit code 3"),
            ("kill -9 $$", State.ERROR, -9, "ended by SIGKILL"),
            *([("kill -40 $$", State.ERROR, -40, "ended by signal 40")] if LINUX else []),
        ):
            outcome = executor.run(job(tmp_path, command), printed.append)
            assert (outcome.state, outcome.exit_code, outcome.reason) == (state, code, reason)
            assert (outcome.took_s or 0.0) > 0.0
        assert b"".join(printed) == b"out\nerr\n"
        for wrong in ({"shell": "/no/shell"}, {"cwd": "/no/folder"}, {"command": "a\0b"}):
            outcome = executor.run(job(tmp_path, "true").replaced(**wrong), printed.append)
            assert outcome.state is State.ERROR
            assert outcome.reason.startswith("can't be started: ")
        executor.cancel()
        assert executor.run(job(tmp_path, "true"), printed.append).state is State.KILLED
    finally:
        executor.close()


def test_who_goes_on_printing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Also not where its output is taken more slowly than it is printed."""
    executor, printed = Executor("cookie"), []

    def take(piece: bytes) -> None:
        printed.append(piece)
        assert len(printed) < 1000
        time.sleep(0.005)

    try:
        outcome = executor.run(job(tmp_path, "yes & sleep 0.2; echo last"), take)
        assert outcome.state is State.DONE
        assert b"last\n" in b"".join(printed)
    finally:
        executor.close()


def test_output_that_can_not_be_taken_ends_the_command(tmp_path: Path) -> None:
    def full(_: bytes) -> None:
        raise OSError("full")

    executor = Executor("cookie")
    try:
        with pytest.raises(OSError, match="full"):
            executor.run(job(tmp_path, "echo x; exec sleep 1000"), full)
    finally:
        executor.close()


def test_records_that_a_killed_runner_left_half_are_those_of_before(pipelines: Pipelines) -> None:
    """What `create` alone has written is a run that was not begun."""
    records = Records(context.open_store(), "half")
    root = co.Serial()
    root["a"] = co.Exec("echo a >> ran")
    records.create(root, ["test"])
    assert pipelines.states("half") == {"/": "pending", "/a": "pending"}
    assert pipelines.conducto("run", "--resume", "half", "--json").code == 0
    events = [json.loads(line) for line in pipelines.conducto("show", "--json").out.splitlines()]
    assert [event["state"] for event in events] == ["done"]


@linux_only
def test_a_process_that_tells_nobody_its_environment_keeps_no_guard_waiting(
    tmp_path: Path,
) -> None:
    number = mark()
    program = tmp_path / "guarding.py"
    program.write_text(
        f"""
import os, subprocess, sys, time
from conducto.run import guard

read, guard.READ_S = guard.environment, 2.0


def environment(pid: int) -> list[bytes]:
    if pid == os.getppid():
        time.sleep(3600)  # as where the program that it begins is on a disk that hangs
    return read(pid)


guard.environment = environment
job = subprocess.Popen(["sleep", "{number}"], env={{**os.environ, guard.VARIABLE: "cookie"}})
guard.watch("cookie")
sys.exit(job.wait() != -9)
"""
    )
    subprocess.run([sys.executable, program], stdin=subprocess.DEVNULL, check=True, timeout=60)
    assert not processes_with(number)
