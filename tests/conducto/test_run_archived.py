"""A pipeline that is archived while somebody resumes it, or in part: what is run is whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

import castore
import conducto as co
from castore.errors import RemoteError
from conducto import context
from conducto.errors import RunError, RunNotFound
from conducto.nodes import Node
from conducto.run import launch
from conducto.run.options import RunOptions
from conducto.run.records import Records
from conducto.run.states import Attempts, State

pytest_plugins = ["modes"]
pytestmark = pytest.mark.usefixtures("mode")


@pytest.fixture
def run_id() -> str:
    """Of a run that has ended, as its records are; its commands were never run."""
    root: Node = co.Serial()
    for name in "abc":
        root[name] = co.Exec("false")
    records = Records(context.open_store(), "p1")
    records.create(root, ["test"])
    session = records.claim(1)
    session.ended = session.began
    records.store.puts(records.session_key(1), json.dumps(asdict(session)).encode())
    for name in "abc":
        state = Attempts(f"/{name}", State.DONE, 1, 0.0).to_dict()
        records.store.puts(records.node_key(f"/{name}"), json.dumps(state).encode())
    co.data.pipeline.puts("result", b"of a")
    return "p1"


def names(run_id: str) -> list[str]:
    return list(context.open_store().names(f"pipelines/{run_id}/"))


@pytest.mark.parametrize("left", range(2, 6))
def test_one_that_was_archived_in_part_is_not_resumed(
    run_id: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its states would have what is done run again, without its data."""
    there = names(run_id)

    def interrupted(store: castore.Store, prefix: str) -> int:
        for name in list(store.names(prefix))[:-left]:
            store.delete(name)
        raise OSError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(castore.Store, "delete_prefix", interrupted)
        with pytest.raises(OSError, match="the network is gone"):
            co.data.archive(run_id)
    assert 0 < len(names(run_id)) < len(there)
    with pytest.raises(RunNotFound):
        launch.resume(run_id, RunOptions(run=True))
    remaining = len(names(run_id))
    assert co.data.archive(run_id) == remaining
    assert names(run_id) == []


def test_one_that_could_not_be_archived_at_all_is_resumed(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, delete = names(run_id), castore.Store.delete

    def fails(store: castore.Store, name: str) -> None:
        if name.endswith("/tree"):
            raise OSError("the network is gone")
        delete(store, name)

    with monkeypatch.context() as patch:
        patch.setattr(castore.Store, "delete", fails)
        with pytest.raises(OSError, match="the network is gone"):
            co.data.archive(run_id)
    assert names(run_id) == there
    records = Records(context.open_store(), run_id)
    assert {each.state for each in records.load().execs.values()} == {State.DONE}
    records.claim(2)


def test_one_that_is_resumed_since_the_look_is_not_archived(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Records._last_session

    def resumed(records: Records) -> Any:
        found = look(records)
        monkeypatch.setattr(Records, "_last_session", look)
        Records(records.store, run_id).claim(2)
        return found

    there = names(run_id)
    monkeypatch.setattr(Records, "_last_session", resumed)
    with pytest.raises(RunError, match="is being run by somebody else"):
        co.data.archive(run_id)
    assert names(run_id) == sorted([*there, f"pipelines/{run_id}/run/sessions/000002"])
    assert Records(context.open_store(), run_id).load().is_alive


def test_one_that_is_archived_since_it_was_loaded_is_not_resumed(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Records.load

    def archived(records: Records) -> Any:
        run = load(records)
        assert co.data.archive(run_id) == len(there)
        return run

    there = names(run_id)
    monkeypatch.setattr(Records, "load", archived)
    with pytest.raises(RunNotFound):
        launch.resume(run_id, RunOptions(run=True))
    assert names(run_id) == []


def test_two_that_archive_it_at_once(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is told so, and may repeat it."""
    delete_prefix = castore.Store.delete_prefix

    def beside(store: castore.Store, prefix: str) -> int:
        monkeypatch.setattr(castore.Store, "delete_prefix", delete_prefix)
        with pytest.raises(RunError, match="still being run, by process"):
            co.data.archive(run_id)
        assert co.data.archive_quiet(0) == {}
        return delete_prefix(store, prefix)

    there = names(run_id)
    monkeypatch.setattr(castore.Store, "delete_prefix", beside)
    assert co.data.archive(run_id) == len(there)
    assert (names(run_id), co.data.archive(run_id)) == ([], 0)


def test_one_that_has_not_begun_does_not_begin_while_it_is_archived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its first runner has recorded the tree, and is about to say that it runs it."""
    records = Records(context.open_store(), "p1")
    records.create(co.Exec("true"), ["test"])
    delete_prefix = castore.Store.delete_prefix

    def beside(store: castore.Store, prefix: str) -> int:
        with pytest.raises(RunError, match="is being run by somebody else"):
            Records(store, "p1").claim(1)
        return delete_prefix(store, prefix)

    monkeypatch.setattr(castore.Store, "delete_prefix", beside)
    assert co.data.archive("p1") == 1
    assert names("p1") == []


def test_one_that_another_has_just_archived_says_so(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for its last session and the reading of that."""
    gets = castore.Store.gets

    def gone(store: castore.Store, name: str, *args: Any) -> bytes:
        if "/sessions/" in name:
            monkeypatch.setattr(castore.Store, "gets", gets)
            store.delete_prefix(f"pipelines/{run_id}/")
        return gets(store, name, *args)

    monkeypatch.setattr(castore.Store, "gets", gone)
    with pytest.raises(RunError, match=f"pipeline {run_id} is being archived by somebody else"):
        co.data.archive(run_id)
    assert co.data.archive(run_id) == 0


def test_what_failed_first_is_what_is_told(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing can be cleared away after it."""

    def fails(store: castore.Store, name: str) -> None:
        raise RemoteError(f"the network is gone: {name}")

    with monkeypatch.context() as patch:
        patch.setattr(castore.Store, "delete", fails)
        with pytest.raises(RemoteError, match=r"gone: .*/tree$"):
            co.data.archive(run_id)
    assert "result" in co.data.pipeline.list()
