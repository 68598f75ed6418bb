"""Beginning a run, or resuming one: store, records, executor, display, runner, put together."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from conducto import context
from conducto.cli import complain
from conducto.errors import RunError
from conducto.mount import data_folder
from conducto.nodes import Node
from conducto.nodes.serialization import dumps, loads
from conducto.run.backend import Backend, LocalBackend
from conducto.run.display import Display, JsonLines, PlainLines
from conducto.run.executor import Executor, room_for
from conducto.run.jobs import Jobs, refuse_secrets
from conducto.run.options import RunOptions
from conducto.run.recorder import Recorder
from conducto.run.records import Records, new_id
from conducto.run.runner import Runner
from conducto.run.states import Attempts, State
from conducto.secrets import NodeSecrets, for_nodes

if TYPE_CHECKING:
    from distributed import Client

CONTAINER_OPTIONS = ("requires_docker", "docker_run_args", "container_reuse_context")
EXIT_CODES = {State.DONE: 0, State.SKIPPED: 0, State.ERROR: 1, State.KILLED: 130}


def launch(root: Node, argv: list[str], options: RunOptions) -> int:
    """Run the tree as a new pipeline; the exit code."""
    node_secrets = for_nodes()
    tree = dumps(root)
    for text in (tree, json.dumps(argv)):
        refuse_secrets(node_secrets, text.encode())
    records = Records(context.open_store(), new_id())
    with _cluster(options) as client:
        records.create(root, argv)
        # What is run is what is recorded, not what the caller goes on to change.
        return _run(records, loads(tree), {}, 1, os.getcwd(), node_secrets, options, client)


def resume(run_id: str, options: RunOptions) -> int:
    """Run what had not succeeded; the exit code. Raises RunNotFound, RunError."""
    records = Records(context.open_store(create=False), run_id)
    run = records.load()
    if run.session is not None and run.is_alive:
        raise run.session.still_running(run.id)
    if not os.path.isdir(run.cwd):
        raise RunError(f"pipeline {run.id} was begun in {run.cwd!r}, which is not there")
    number = run.sessions + 1
    with _cluster(options) as client:
        return _run(records, run.root, run.execs, number, run.cwd, for_nodes(), options, client)


@contextmanager
def _cluster(options: RunOptions) -> Iterator[Client | None]:
    """A client of the cluster that the options name, if they name one."""
    if options.cluster is None:
        yield None
        return
    try:
        from conducto.run.cluster import connected
    except ModuleNotFoundError as error:
        raise RunError(
            f"a run on a cluster needs dask.distributed ({error}): pip install 'castore[dask]'"
        ) from error
    with connected(options.cluster) as client:
        yield client


def _run(
    records: Records,
    root: Node,
    execs: dict[str, Attempts],
    number: int,
    cwd: str,
    node_secrets: NodeSecrets,
    options: RunOptions,
    client: Client | None,
) -> int:
    session = records.claim(number)
    display = _display(records.id, root, execs, options)
    _say_what_is_not_acted_on(root)
    parallel = options.parallel
    if parallel and client is None:
        parallel = _with_room(parallel)
    recorder = Recorder(records, session, number)
    with (
        closing(display),
        closing(recorder),
        _backend(records, cwd, node_secrets, recorder, client) as backend,
    ):
        runner = Runner(
            root,
            backend=backend,
            recorder=recorder,
            display=display,
            execs=execs,
            parallel=parallel or None,
        )
        state = runner.run()
    display.ended(state)
    return EXIT_CODES[state]


@contextmanager
def _backend(
    records: Records,
    cwd: str,
    node_secrets: NodeSecrets,
    recorder: Recorder,
    client: Client | None,
) -> Iterator[Backend]:
    """The workers of the client's cluster; without one, this machine."""
    if client is not None:
        from conducto.run.cluster import ClusterBackend

        yield ClusterBackend(client, records, cwd)
        return
    cookie = secrets.token_hex(16)
    with data_folder(records.id) as folder:
        jobs = Jobs(records.id, cookie, cwd, node_secrets, folder)
        yield LocalBackend(jobs, Executor(cookie), recorder)


def _with_room(parallel: int) -> int:
    """As many commands at once as this machine lets us have, of so many."""
    room = room_for(parallel)
    if room < parallel:
        complain(
            f"conducto: {room} commands run at once, and not {parallel}: the system lets a process "
            "have no more open files (ulimit -n)"
        )
    return room


def _display(run_id: str, root: Node, execs: dict[str, Attempts], options: RunOptions) -> Display:
    if options.json:
        return JsonLines(run_id, root, execs)
    if sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        try:
            from conducto.run.live import LiveTree
        except ImportError:
            complain("conducto: a live tree needs rich: pip install 'castore[tree]'")
        else:
            return LiveTree(run_id, root, execs)
    return PlainLines(run_id, root, execs)


def _say_what_is_not_acted_on(root: Node) -> None:
    fields = set()
    for node in root.stream():
        if node.own_image is not None:
            fields.update(node.own_image.asks_for_containers())
        fields.update(option for option in CONTAINER_OPTIONS if getattr(node, option))
    if fields:
        complain(
            "conducto: nothing here starts containers: commands run as processes of this machine, "
            f"and {', '.join(sorted(fields))} of images and nodes are not acted on"
        )
