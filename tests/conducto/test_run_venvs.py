"""`reqs_py`: environments that are made once for each set of requirements."""

from __future__ import annotations

import fcntl
import os
import signal
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipelines import Pipelines, wait_for

import conducto as co


def wheel(folder: Path, name: str, code: str) -> str:
    """A package with one module, as pip installs it without asking a registry."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return str(path)


def test_an_environment_for_each_set_of_requirements(pipelines: Pipelines, tmp_path: Path) -> None:
    one = co.Image(reqs_py=["conducto", wheel(tmp_path, "onepackage", "VALUE = 41\n")])
    root = co.Parallel(image=one)
    use = "python -c 'import onepackage, conducto; print(onepackage.VALUE, conducto.__name__)'"
    for number in range(3):
        root[f"n{number}"] = co.Exec(f"{use}; echo $VIRTUAL_ENV")
    root["none"] = co.Exec("python -c 'import onepackage'", image=co.Image())
    root["bad"] = co.Exec("true", image=co.Image(reqs_py=["./no.whl"]))
    done = pipelines.run(root, parallel=4)
    logs = {name: pipelines.conducto("logs", done.id, name).out for name in root.children}
    made = [name for name in ("n0", "n1", "n2") if logs[name].startswith("conducto: making ")]
    assert len(made) == 1  # the others waited for it
    folders = {logs[f"n{number}"].splitlines()[-1] for number in range(3)}
    assert len(folders) == 1
    assert folders.pop().startswith(str(tmp_path / "cache" / "venvs"))
    assert all("41 conducto\n" in logs[f"n{number}"] for number in range(3))
    assert "No module named 'onepackage'" in logs["none"]
    states = pipelines.load(done.id).execs
    assert states["/bad"].reason == "reqs_py: exit code 1"
    assert "no.whl" in logs["bad"]

    again = co.Exec(use, image=one)
    assert pipelines.conducto("logs", pipelines.run(again).id, "/").out == "41 conducto\n"
    os.utime(one.reqs_py[1], ns=(1, 1))  # another file by the same name
    anew = pipelines.run(co.Exec(use, image=one))
    assert pipelines.conducto("logs", anew.id, "/").out.startswith("conducto: making ")


@contextmanager
def being_made(cache: Path) -> Iterator[None]:
    """All environments that there are, as if another process made them."""
    with ExitStack() as files:
        for lock in (cache / "venvs").glob("*.lock"):
            fcntl.flock(files.enter_context(lock.open("rb")), fcntl.LOCK_EX)
        yield


def test_who_waits_for_an_environment_can_be_stopped(pipelines: Pipelines, tmp_path: Path) -> None:
    """By an interrupt, and by its own time limit."""
    image = co.Image(reqs_py=["conducto"])
    assert pipelines.run(co.Exec("true", image=image)).code == 0
    with being_made(tmp_path / "cache"):
        late = pipelines.run(co.Exec("true", image=image, max_time=0.3))
        reason = pipelines.load(late.id).execs["/"].reason
        assert reason == "reqs_py: another process was still making it after 0.3 s"
        pipelines.write(
            "pipeline.py",
            """
            def build() -> co.Exec:
                return co.Exec("true", image=co.Image(reqs_py=["conducto"]))
            """,
        )
        with pipelines.begin("pipeline.py", "--run") as runner:
            assert runner.stdout is not None
            run_id = runner.stdout.readline().split()[1]
            wait_for(lambda: pipelines.states(run_id)["/"] == "running")
            runner.send_signal(signal.SIGINT)
            runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert pipelines.states(run_id) == {"/": "killed"}
