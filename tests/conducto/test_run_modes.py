"""A run is recorded where the pipeline's data is, in the cloud, too; its commands run here."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import pytest

import conducto as co
from conducto import command, context
from conducto.nodes.serialization import dumps
from conducto.run.launch import launch
from conducto.run.options import RunOptions
from conducto.run.records import Records, Session

pytest_plugins = ["modes"]


@pytest.mark.parametrize("mode", ["cloud"], indirect=True)  # the others are of local runs
def test_a_run_is_recorded_resumed_and_archived(
    mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = os.environ["CONDUCTO_IDENTITY_ID"]
    monkeypatch.delenv("CONDUCTO_IDENTITY_ID")
    monkeypatch.setattr(context, "identity", lambda: identity)  # as STS says
    root = co.Serial()
    root["first"] = co.Exec(
        "echo $CONDUCTO_IDENTITY_ID; head -c 600000 /dev/zero; sleep 0.7; echo last"
    )
    root["lazy"] = co.Lazy("echo '" + dumps(co.Exec("echo it is $WAY; test $WAY = good")) + "'")
    monkeypatch.setenv("WAY", "bad")
    assert launch(root, ["test"], RunOptions(run=True, parallel=2)) == 1
    run_id = capsys.readouterr().out.split()[1]
    context.close_stores()
    records = Records(context.open_store(), run_id)
    assert records.store.path.startswith("s3://")
    with records.open_log("/first", 1) as file:
        assert file.read() == identity.encode() + b"\n" + bytes(600_000) + b"last\n"
    another = Session.here("another")  # in a container with this machine's name
    another.pid = 2**22 + 1  # which no process has here
    records.store.puts(records.session_key(2), json.dumps(asdict(another)).encode())
    assert records.load().is_alive
    assert command.main(["run", "--resume", run_id]) == 1
    assert "is still being run" in capsys.readouterr().err
    records.store.delete(records.session_key(2))
    monkeypatch.setenv("WAY", "good")
    assert command.main(["run", "--resume", run_id]) == 0
    assert "begins (attempt 2)" in capsys.readouterr().out
    assert command.main(["logs", run_id, "lazy/Execute", "--attempt=1"]) == 0
    assert capsys.readouterr().out == "it is bad\n"
    assert command.main(["show", run_id, "--json"]) == 0
    assert {node["state"] for node in json.loads(capsys.readouterr().out)["nodes"]} == {"done"}
    assert command.main(["archive", run_id]) == 0
    assert list(records.store.names(f"pipelines/{run_id}/")) == []
