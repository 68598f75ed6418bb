"""One reply that is damaged on its way is not taken for damage of the store, whatever it is of:
each reply of a check, in turn, has a wrong bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gc_stores import DAY, World, collect, edited, noise
from memory_s3 import MemoryAttempts

from castore.check import data
from castore.s3.check import source
from castore.s3.client.attempts import Reply
from castore.s3.namespace import writing

pytestmark = pytest.mark.usefixtures("probed")

LARGE = noise(140_000, 1)
VALUES = {f"n/{i}": b"%d" % i * 40 for i in range(6)}
VALUES |= {"large": LARGE, "next": edited(LARGE, 1), "more": noise(135_000, 2), "single": b"alone"}


class OneBit:
    """Flips a bit of the reply to a GET that has a body once `left` others have come, so far into
    it as `at` says, between 0 and 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.at = 0.5
        self.damaged: str | None = None
        get = MemoryAttempts.get

        def damaged(attempts: MemoryAttempts, key: str, *of: Any) -> Reply | None:
            reply = get(attempts, key, *of)
            if reply is None or not reply.body or self.left < 0:
                return reply
            self.left -= 1
            if self.left >= 0:
                return reply
            self.damaged = f"{key} {of[0]}"
            body = bytearray(reply.body)
            body[int(self.at * (len(body) - 1))] ^= 4
            return reply._replace(body=bytes(body))

        monkeypatch.setattr(MemoryAttempts, "get", damaged)

    def each(self, step: float) -> Iterator[None]:
        """Have each reply damaged in turn, until there are no more."""
        for n in range(10_000):
            self.left, self.damaged = n, None
            self.at = n * step % 1
            yield
            if self.damaged is None:
                assert n > 10
                return


@pytest.fixture
def world(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> World:
    """With something of each kind that a check reads."""
    monkeypatch.setattr(writing, "BATCH_NAMES_MIN", 2)
    world = make_world(batches=True)
    with world.open("writer") as store:
        store.puts("garbage", noise(150_000, 3))
        with store.transaction() as t:
            for name in [name for name in VALUES if name.startswith("n/")]:
                t.puts(name, VALUES[name])
            t.puts("z", b"")
        for name in ("large", "next", "more", "single"):
            store.puts(name, VALUES[name])
        store.delete("garbage")
        store.delete("z")
        store.puts("weak", b"w", if_absent=True)
        with store.open("n/5", "ab") as file:
            file.write(b"more")
    with world.open("collector") as store:
        assert collect(store, grace_s=DAY).packs_condemned
    leaves = world.open("leaves")  # its pins
    leaves.puts("pinned", noise(140_000, 5))
    assert world.server.keys("store/pins/")
    return world


@pytest.mark.parametrize("step", [0.0, 0.137, 0.61])
@pytest.mark.parametrize("small", [False, True])
def test_a_check_finds_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, step: float, small: bool
) -> None:
    if small:  # manifests and packs are read in many parts
        monkeypatch.setattr(source, "FIRST_BYTES", 100)
        monkeypatch.setattr(source, "SPAN_BYTES_MAX", 500)
        monkeypatch.setattr(data, "TASK_BYTES", 10_000)
    one_bit = OneBit(monkeypatch)
    store = world.open("checks", threads=1)
    wrong = []
    for _ in one_bit.each(step):
        report = store.check(read_data=True)
        if report.problems:
            wrong.append((one_bit.damaged, [problem.what for problem in report.problems]))
    one_bit.left = -1
    assert wrong == []
