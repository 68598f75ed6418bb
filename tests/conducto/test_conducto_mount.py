"""The data of a pipeline and of its user as folders: a command, and what nodes find."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import mounts
import pytest
from between import change_after_each_read
from pipelines import wait_for

import castore.mount.process
import conducto as co
from castore.errors import NameNotFound
from conducto import context, mount
from conducto.mount import VARIABLE, data_folder, prefixes


def tree() -> co.Node:
    root = co.Serial(stop_on_error=False)
    root["write"] = co.Exec(
        "cat $CONDUCTO_DATA_DIR/user/given > $CONDUCTO_DATA_DIR/pipeline/made;"
        "rm $CONDUCTO_DATA_DIR/user/old"
    )
    root["read"] = co.Exec("grep -r given $CONDUCTO_DATA_DIR/pipeline")
    return root


needs_mounts = pytest.mark.skipif(
    mounts.why_not() is not None, reason=f"nothing can be mounted here: {mounts.why_not()}"
)


@pytest.fixture
def no_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(castore.mount.process, "unavailable", lambda: "there is no /dev/fuse")


def _check_run(pipelines: Any) -> None:
    co.data.user.puts("given", b"as given\n")
    co.data.user.puts("old", b"")
    done = pipelines.run(tree())
    assert done.code == 0, done
    data = co.data.pipeline.bound(pipeline_id=done.id)
    assert data.gets("made") == b"as given\n"
    assert data.list() == ["made"]
    assert co.data.user.list() == ["given"]


@needs_mounts
def test_nodes_find_a_mount(
    pipelines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _check_run(pipelines)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not [*tmp_path.glob("conducto-data-*")]


def test_nodes_find_a_copy(pipelines: Any, no_mounts: None) -> None:
    _check_run(pipelines)


def test_what_is_pulled_and_pushed(
    no_mounts: None, pipelines: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = co.data.pipeline.bound(pipeline_id="7")
    data.puts("d/same", b"1")
    data.puts("d/changed", b"1")
    before = data.info("d/same")
    with data_folder("7") as folder:
        with folder.of_node("true") as nothing:
            assert nothing is None
        assert capsys.readouterr().err == ""
        with folder.of_node(f"ls ${VARIABLE}") as node:
            assert node is not None
            at = Path(node.folder, "pipeline", "d")
            (at / "changed").write_bytes(b"2")
            (at / "new").write_bytes(b"3")
            (at / "new").chmod(0o700)
            os.symlink("nowhere", at / "link")
        assert not os.path.exists(node.folder)
        with folder.of_node(f"ls ${VARIABLE}") as node:
            assert node is not None
            Path(node.folder, "pipeline", "d", "half").write_bytes(b"4")
            node.is_whole = False  # it was killed
    assert data.list() == ["d/changed", "d/new", "d/same"]
    assert data.gets("d/changed") == b"2"
    assert data.info("d/new").mode == 0o700
    assert data.info("d/same") == before
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "conducto: nothing can be mounted here (there is no /dev/fuse): for nodes whose command "
        f"names {VARIABLE} the data is pulled before, and pushed after"
    ]


@pytest.mark.parametrize("after", range(4))
def test_what_another_deletes_while_it_is_pushed_need_not_be(
    no_mounts: None, pipelines: Any, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    data = co.data.pipeline.bound(pipeline_id="7")
    data.puts("d/old", b"1")
    with data_folder("7") as folder, folder.of_node(f"ls ${VARIABLE}") as node:
        assert node is not None
        at = Path(node.folder, "pipeline", "d")
        (at / "new").write_bytes(b"2")
        (at / "old").unlink()
        delete = partial(data.delete, "d/old")
        change_after_each_read(monkeypatch, [lambda: None] * after + [suppressed(delete)])
    assert data.list() == ["d/new"]


def suppressed(delete: Callable[[], None]) -> Callable[[], None]:
    def do() -> None:
        with suppress(NameNotFound):
            delete()

    return do


def test_a_folder_that_can_not_be_read_is_not_taken_for_deleted(
    no_mounts: None, pipelines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    co.data.user.puts("kept/a", b"1")
    scandir = os.scandir

    def scanned(path: Any) -> Any:
        if str(path).endswith("user/kept"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    with (
        data_folder("7") as folder,
        pytest.raises(PermissionError),
        folder.of_node(f"chmod 0 ${VARIABLE}/user/kept"),
    ):
        monkeypatch.setattr(os, "scandir", scanned)
    assert co.data.user.gets("kept/a") == b"1"


def test_a_node_whose_data_can_not_be_pushed_is_told_to_have_run(
    no_mounts: None, pipelines: Any
) -> None:
    root = co.Parallel()
    root["a"] = co.Exec(f"touch ${VARIABLE}/user/$'\\xff'")
    root["b"] = co.Exec(f"touch ${VARIABLE}/user/$'\\xff'; exit 3")
    done = pipelines.run(root)
    execs = pipelines.load(done.id).execs
    lost = "what it changed in its data was not kept: "
    assert done.code == 1
    assert execs["/a"].reason.startswith(lost)
    assert execs["/a"].exit_code == 0
    assert execs["/b"].reason.startswith(f"exit code 3; {lost}")


@pytest.mark.parametrize("ways", [pytest.param("mount", marks=needs_mounts), "copy"])
@pytest.mark.parametrize("end", ["sleep 100", "kill -KILL $$"])
def test_a_half_of_a_file_does_not_replace_it_when_its_node_is_killed(
    pipelines: Any, request: pytest.FixtureRequest, ways: str, end: str
) -> None:
    if ways == "copy":
        request.getfixturevalue("no_mounts")
    co.data.user.puts("table", b"all of it")
    command = f"exec > ${VARIABLE}/user/table; echo half; {end}; true"
    done = pipelines.run(co.Exec(command, max_time=1.0))
    assert done.code == 1
    assert co.data.user.gets("table") == b"all of it"


KILLED = """
import os, signal, sys
from conducto import mount
mount.PLAIN = sys.argv[1]
with mount.data_folder("7") as folder, folder.of_node("true"):
    open(os.path.join(mount.PLAIN, "user", "a"), "w").close()
    print(os.readlink(mount.PLAIN), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_mounts
def test_the_plain_folder_leads_to_one_run_and_goes_with_it(
    pipelines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain" / "data"
    plain.parent.mkdir()
    monkeypatch.setattr(mount, "PLAIN", str(plain))
    killed = subprocess.run([sys.executable, "-c", KILLED, plain], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    wait_for(lambda: not os.path.lexists(plain) and not os.path.lexists(killed.stdout.strip()))
    plain.symlink_to(killed.stdout.strip())  # as a power cut leaves it
    with data_folder("7") as first, first.of_node("true") as node:
        assert node is not None
        assert os.readlink(plain) == node.folder
        with data_folder("8") as second, second.of_node("true") as other:
            assert other is not None
            assert os.readlink(plain) == node.folder  # who has it keeps it
        assert os.path.islink(plain)
    assert not os.path.lexists(plain)
    plain.symlink_to(tmp_path / "of the user's own")
    with data_folder("7") as first, first.of_node("true"):
        assert os.readlink(plain) == str(tmp_path / "of the user's own")
    assert os.path.islink(plain)


def test_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONDUCTO_PIPELINE_ID", raising=False)
    assert prefixes() == {"user": "data/"}
    assert prefixes(pipeline_id="7") == {"user": "data/", "pipeline": "pipelines/7/data/"}
    assert prefixes("pipeline", pipeline_id="7") == {"": "pipelines/7/data/"}
    assert prefixes("user") == {"": "data/"}
    with pytest.raises(co.data.ContextError):
        prefixes("pipeline")


@needs_mounts
def test_the_command(pipelines: Any, tmp_path: Path) -> None:
    at = tmp_path / "at"
    at.mkdir()
    command = [sys.executable, "-m", "conducto"]
    environment = {**os.environ, "CONDUCTO_PIPELINE_ID": "7"}
    for arguments, path in (([], "pipeline/a"), (["pipeline"], "b"), (["user"], "c")):
        subprocess.run([*command, "mount", *arguments, at], check=True, env=environment)
        try:
            (at / path).write_bytes(b"1")
        finally:
            subprocess.run([*command, "umount", at], check=True)
    assert co.data.pipeline.bound(pipeline_id="7").list() == ["a", "b"]
    assert co.data.user.list() == ["c"]
    subprocess.run([*command, "mount", "user", at, "--read-only"], check=True)
    try:
        with pytest.raises(OSError, match="Read-only file system"):
            (at / "c").write_bytes(b"2")
    finally:
        subprocess.run([*command, "umount", at], check=True)
    for wrong in (["mount"], ["mount", "org", at], ["umount"], ["mount", "pipeline", at]):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True)
        assert done.returncode in (1, 2)
        assert done.stderr.startswith("conducto: ")
    assert not os.path.ismount(at)
    assert context.store_url().startswith("/")
