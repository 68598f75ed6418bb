"""Writers and collectors of a store on S3 that are killed, or stopped and go on: real processes."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import gc_s3_oracle
import pytest
from fault_proxy import Connection, Exchange, FaultProxy
from gc_s3_oracle import DOOMED, KEPT, Child, Expected, ForkServer
from killed_s3 import Crowd, assert_no_space_is_lost, behind, collect_all, opened
from s3_stores import make_store
from servers import Server

import castore
from castore.s3.client.bucket import Bucket

# ---- killed -------------------------------------------------------------------------------------


def kill_again_and_again(
    server: Server, proxy: FaultProxy, forks: ForkServer, folder: Path, kills: int
) -> Expected:
    """A collector and a writer on one bucket, both killed at a random moment, each turn. Their
    caches live on."""
    make_store(server)
    expected, url = Expected(), behind(proxy, server)
    for turn in range(1, kills + 1):
        choose = random.Random(turn)
        writer = forks.start("keep_writing", url, str(folder / "w"), turn, 1 + turn % 2)
        collector = forks.start("keep_collecting", url, str(folder / "c"), turn)
        writer.await_lines(choose.randrange(12))  # not a time: the machine may be busy
        time.sleep(choose.random() * 0.1)
        for process in choose.sample([collector, writer], 2):
            process.kill()
            time.sleep(choose.random() * 0.05)
        for process in (collector, writer):
            assert process.wait() == -9, process.errors()
            assert process.errors() == ""
        proxy.await_clients()
        expected.follow(writer.said())
        assert expected.absent == []
        with opened(server.url(), folder / f"{turn}") as store:
            expected.check(store)
            if turn % 10 == 0 or turn == kills:
                collect_all(server, store, expected)
    return expected


def test_killed_at_random_moments(
    moto_server: Server, quick: None, proxy: FaultProxy, forks: ForkServer, folder: Path
) -> None:
    expected = kill_again_and_again(moto_server, proxy, forks, folder, 5)
    assert expected.acknowledged > 2


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_killed_at_a_thousand_random_moments(
    moto_server: Server, quick: None, proxy: FaultProxy, forks: ForkServer, folder: Path
) -> None:
    expected = kill_again_and_again(moto_server, proxy, forks, folder, 1000)
    print(f"{expected.acknowledged} acknowledged")
    assert expected.acknowledged > 1000


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_crowd_of_which_one_after_the_other_is_killed(
    moto_server: Server,
    quick: None,
    forks: ForkServer,
    folder: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Now and then all are, and everything is looked at."""
    make_store(moto_server)
    until = time.monotonic() + 60 * request.config.getoption("--minutes")
    choose = random.Random(1)
    with Crowd(moto_server, forks, folder, writers=4, collectors=2) as crowd:
        while (left_s := until - time.monotonic()) > 0:
            crowd.run(min(left_s, 60), choose)
            crowd.check()
            print(f"{crowd.kills} killed, {crowd.acknowledged} changes acknowledged, none lost")
    assert crowd.acknowledged > crowd.kills


# ---- stopped ------------------------------------------------------------------------------------


class Pause:
    """A fault that stops the process that sent the request, before the server sees it or, if
    `applied`, once the server has answered; runs `meanwhile`, and lets it go on."""

    def __init__(self, meanwhile: Callable[[], object], *, applied: bool) -> None:
        self.child: Child | None = None  # it may be here before its pid is known
        self.request = ""
        self.error: BaseException | None = None
        self._meanwhile = meanwhile
        self._applied = applied

    def __call__(self, exchange: Exchange, connection: Connection) -> None:
        body = b"".join(connection.request_blocks(exchange))
        self.request = f"{exchange.kind} {exchange.key}"
        while self.child is None:
            time.sleep(0.001)
        with self.child.stopped():
            if self._applied:
                pass_on(exchange, connection, body)
            try:
                self._meanwhile()
            except BaseException as error:
                self.error = error
        if not self._applied:
            pass_on(exchange, connection, body)


def whole(exchange: Exchange, connection: Connection) -> None:
    """Pass a request on once all of it is here: the server takes one at a time, and would wait for
    the rest of one whose process is stopped."""
    pass_on(exchange, connection, b"".join(connection.request_blocks(exchange)))


def pass_on(exchange: Exchange, connection: Connection, body: bytes) -> None:
    response = connection.upstream.forward(exchange, body)
    exchange.status = response.status
    connection.send(response.head + response.body)


Program = tuple[str, ...]  # of gc_s3_oracle, with the arguments that follow URL and cache
REMOVE = "remove", *DOOMED
REMOVE_SOURCE = *REMOVE, KEPT


class Stopping:
    """A store as `prepare` makes it, again and again, and a process that is stopped at it.

    `errors`: at which request a process was, and with what one ended, where that was an error."""

    def __init__(self, server: Server, proxy: FaultProxy, forks: ForkServer, folder: Path) -> None:
        self.errors: list[tuple[str, str]] = []
        self._server = server
        self._proxy = proxy
        self._forks = forks
        self._folder = folder
        make_store(server, prefix="made")
        self._said = forks.run("prepare", server.url("made"), str(folder / "made"))
        with Bucket(server.settings("made")) as bucket:
            self._objects = {entry.key: bucket.get(entry.key).body for entry in bucket.list("")}

    def stop_at(self, step: int, stopped: Program, beside: Program) -> bool:
        """Run one program up to a step, then all of the other, then the rest. Each request is two
        steps: before it arrives, and after it was answered. False if there are fewer."""
        prefix = "-".join((*stopped, f"{step}"))
        with Bucket(self._server.settings(prefix)) as bucket:
            for key, raw in self._objects.items():
                bucket.put(key, raw, idempotent=True)
        url, caches = self._server.url(prefix), self._folder / prefix
        said: list[bytes] = []

        def meanwhile() -> None:
            said.extend(self._forks.run(beside[0], url, str(caches / "beside"), *beside[1:]))

        pause = Pause(meanwhile, applied=step % 2 > 0)
        self._proxy.rules.clear()
        rule = self._proxy.inject("", "", pause, nth=step // 2 + 1)
        self._proxy.inject("", "", whole, times=1 << 20)
        through = behind(self._proxy, self._server, prefix)
        child = self._forks.start(stopped[0], through, str(caches / "stopped"), *stopped[1:])
        pause.child = child
        assert child.wait() == 0, child.errors()
        assert pause.error is None, pause.error
        if not rule.applied:
            return False
        expected = Expected()
        expected.follow([*self._said, *child.said(), *said])
        self.errors += [(pause.request, error) for error in expected.errors]
        removed = [
            name for program in (stopped, beside) if program[0] == "remove" for name in program[1:]
        ]
        assert {*expected.absent} <= {*removed}
        expected.settled.update(dict.fromkeys(removed))
        with opened(url, caches / "check") as store:
            self._check(store, expected)
        with Bucket(self._server.settings(prefix)) as bucket:
            assert_no_space_is_lost(bucket)
        shutil.rmtree(caches)
        return True

    def _check(self, store: castore.Store, expected: Expected) -> None:
        """All that was acknowledged is there, and is still when all is collected that may be."""
        expected.check(store)
        gc_s3_oracle.collect(store, repack_below=0.0)
        expected.check(store)
        gc_s3_oracle.assert_whole(store.check(read_data=True))


@pytest.fixture
def stopping(
    moto_server: Server,
    quick: None,
    proxy: FaultProxy,
    forks: ForkServer,
    folder: Path,
    probed: None,
) -> Stopping:
    return Stopping(moto_server, proxy, forks, folder)


def stop_at_every_step(stopping: Stopping, stopped: Program, beside: Program) -> int:
    step = 0
    while stopping.stop_at(step, stopped, beside):
        step += 1
    print(f"{stopped}: {step} steps, {stopping.errors}")
    return step


def test_stopped_at_some_steps(stopping: Stopping) -> None:
    for verb, step in [("put", 13), ("rename", 18)]:
        assert stopping.stop_at(step, ("change", verb), REMOVE)
    assert stopping.errors == []


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("verb", gc_s3_oracle.CHANGES)
def test_stopped_at_every_step(stopping: Stopping, verb: str) -> None:
    assert stop_at_every_step(stopping, ("change", verb), REMOVE) > 8
    assert stopping.errors == []


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("verb", ["delete", "copy", "rename"])
def test_stopped_while_its_source_is_removed(stopping: Stopping, verb: str) -> None:
    assert stop_at_every_step(stopping, ("change", verb), REMOVE_SOURCE) > 8


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("verb", ["put", "copy"])
def test_a_collector_is_stopped_at_every_step(stopping: Stopping, verb: str) -> None:
    assert stop_at_every_step(stopping, REMOVE, ("change", verb)) > 100
    assert stopping.errors == []
