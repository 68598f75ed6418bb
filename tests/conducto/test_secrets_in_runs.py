"""Secrets are in the environment of every node, and nowhere else that a test can find."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import shlex
from pathlib import Path

import pytest
from pipelines import Pipelines, command_lines, wait_for

import conducto as co
from conducto import command, context, secrets
from conducto.nodes import TreeError
from conducto.run.launch import launch
from conducto.run.options import RunOptions

pytest_plugins = ["modes"]

TOKEN = "s3kr1t-of/nobody+at=all"
PEM = "-----BEGIN KEY-----\nMIIBVAIBADANBgkqhkiG9w0B\nAQEFAASCAT4wggE6AgEAAkEA\n-----END KEY-----\n"
ORG = "0rganized'\"secret"

PIPELINE = """
    import os, sys, time

    def crash():
        token = os.environ["TOKEN"]
        raise SystemError(f"can't log in with {token}: {os.environ!r}")

    def slow():
        for letter in os.environ["TOKEN"]:
            print(letter, end="", flush=True)
            time.sleep(0.01)
        print("", os.environ["PEM"], file=sys.stderr)

    def wait():
        open("running", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.02)

    def more() -> co.Parallel:
        root = co.Parallel(doc="It was made by a Lazy.")
        root["again"] = co.Exec('echo "again $TOKEN"')
        return root

    def build():
        root = co.Parallel(env={"OVER": "by the node"})
        root["environment"] = co.Exec("env; cat /proc/self/environ; export -p; set")
        root["traced"] = co.Exec('set -x; test "$ORG" = x; echo "<$ORG>"; false')
        root["encoded"] = co.Exec('echo "u:$TOKEN" | base64; printf %s "$PEM" | base64 -w 0')
        root["crash"] = co.Exec(crash)
        root["slow"] = co.Exec(slow)
        root["wait"] = co.Exec(wait)
        root["lazy"] = co.Lazy(more)
        root["shown"] = co.Exec("echo $PLAIN $OVER $ORG_ONLY")
        return root
"""

# What would betray them: no program that prints a secret in another form is among the nodes.
TRACES = [
    *(TOKEN.encode(), ORG.encode(), b"0rganized", b"s3kr1t"),
    *(b"MIIBVAIBADANBgkqhkiG9w0B", b"AQEFAASCAT4wggE6AgEAAkEA"),
    *(base64.b64encode(TOKEN.encode())[:-4], base64.b64encode(PEM.encode())[:60]),
    *(base64.b64encode(b"u:" + TOKEN.encode())[4:-8],),
]


def put() -> None:
    api = co.api.Secrets()
    api.put_user_secrets({"TOKEN": TOKEN, "PEM": PEM, "OVER": "by the user"})
    api.put_org_secrets({"ORG": ORG, "OVER": "by the organization", "ORG_ONLY": "an org's own"})
    api.put(co.api.Secret("PLAIN", "eu-west-1", mask=False))


def test_nowhere(pipelines: Pipelines, tmp_path: Path) -> None:
    put()
    pipelines.write("pipeline.py", PIPELINE)
    begun = pipelines.begin("pipeline.py", "--run", "-j", "4")
    wait_for(lambda: begun.poll() is not None or (pipelines.folder / "running").exists())
    assert begun.poll() is None, begun.communicate()
    arguments = command_lines()
    assert b"pipeline.py" in arguments
    (pipelines.folder / "go").touch()
    out, err = begun.communicate(timeout=120)
    assert begun.returncode == 1
    found = re.search(r"pipeline (\w+)", out)
    assert found is not None
    run_id = found[1]
    said = [arguments, out.encode(), err.encode()]
    for argv in (
        ["show", run_id],
        ["show", run_id, "--json"],
        ["show", run_id, "--html", "page.html"],
        *(["logs", run_id, node] for node in ("environment", "traced", "encoded", "crash", "slow")),
        ["secrets", "list"],
        ["secrets", "list", "--org"],
    ):
        done = pipelines.conducto(*argv)
        said += [done.out.encode(), done.err.encode()]
    crashed = pipelines.conducto("logs", run_id, "crash").out
    assert "SystemError: can't log in with ***" in crashed
    assert pipelines.conducto("logs", run_id, "lazy/Execute/again").out == "again ***\n"
    assert pipelines.conducto("logs", run_id, "shown").out == "eu-west-1 by the node ***\n"
    store = context.open_store()
    kept = {name: store.gets(name) for name in store.names()}
    assert len(kept) > 5
    said += [*kept.values(), *(gzip.decompress(v) for v in kept.values() if v[:2] == b"\x1f\x8b")]
    said += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(said) > 40
    for text in said:
        for trace in TRACES:
            assert trace not in text.replace(b"\n", b"") + text, text


def test_the_executing_program_has_them(pipelines: Pipelines) -> None:
    put()
    root = co.Serial()
    root["it"] = co.Exec('printf \'%s|%s|%s\' "$TOKEN" "$PEM" "$ORG" | md5sum > sums')
    assert pipelines.run(root).code == 0
    whole = f"{TOKEN}|{PEM}|{ORG}".encode()
    assert hashlib.md5(whole).hexdigest() in (pipelines.folder / "sums").read_text()


def test_a_tree_with_a_secret_in_it_is_not_run(pipelines: Pipelines) -> None:
    """As it would be on command lines, and kept."""
    put()
    root = co.Serial()
    root["it"] = co.Exec(f"curl -H 'Authorization: {TOKEN}' localhost")
    with pytest.raises(TreeError, match=r"the value of a secret in it \(TOKEN\)") as caught:
        pipelines.run(root)
    assert TOKEN not in str(caught.value)
    assert list(context.open_store().names()) == []
    root = co.Serial()
    root["it"] = co.Exec(f"echo {shlex.quote(ORG)}")
    with pytest.raises(TreeError, match=r"\(ORG\)"):
        pipelines.run(root)
    co.api.Secrets().put(co.api.Secret("TOKEN", TOKEN, mask=False))
    root = co.Serial()
    root["it"] = co.Exec(f"echo '{TOKEN}'")
    done = pipelines.run(root)
    assert pipelines.conducto("logs", done.id, "it").out == f"{TOKEN}\n"
    co.api.Secrets().put_user_secrets({"A": "it"})  # too short to tell it from what is there
    assert pipelines.run(root).code == 0


@pytest.mark.parametrize("mode", ["cloud"], indirect=True)
def test_in_the_cloud(
    mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDUCTO_ORG_ID", "of-this-test")
    put()
    assert secrets.environment()["TOKEN"] == TOKEN
    root = co.Exec('echo "$TOKEN $ORG_ONLY $PLAIN"')
    assert launch(root, ["test"], RunOptions(run=True, parallel=1)) == 0
    run_id = capsys.readouterr().out.split()[1]
    assert command.main(["logs", run_id, "/"]) == 0
    assert capsys.readouterr().out == "*** *** eu-west-1\n"
    store = context.open_store()
    assert store.path.startswith("s3://")
    assert TOKEN.encode() not in b"".join(store.gets(name) for name in store.names())


def test_a_run_whose_secrets_can_not_be_had_does_not_begin(
    pipelines: Pipelines, tmp_path: Path
) -> None:
    put()
    (tmp_path / "base" / "default" / "secrets.key").unlink()
    pipelines.write("pipeline.py", "def build(): return co.Exec('touch it-ran')")
    done = pipelines.python("pipeline.py", "--run")
    assert done.code == 1
    assert re.fullmatch(r"pipeline\.py: the key to the secrets in .* is gone.*\n", done.err)
    assert not (pipelines.folder / "it-ran").exists()


def test_a_command_that_is_killed_within_a_secret_leaves_no_half_of_it(
    pipelines: Pipelines,
) -> None:
    put()
    root = co.Exec('printf "it is %s" "${TOKEN%???}"; kill -9 $$')
    done = pipelines.run(root)
    assert "  | it is ***\n" in done.out
    assert pipelines.log(done.id, "/") == b"it is ***"
