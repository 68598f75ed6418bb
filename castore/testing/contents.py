"""What the tests of the contract put, and what they put it with."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

CHUNK_MIN, CHUNK_MAX, TAIL = 704, 11264, 256  # of the `store` fixture


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def text(size: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    words = [rng.randbytes(4).hex() for _ in range(200)]
    return " ".join(rng.choices(words, k=size // 9 + 1)).encode()[:size]


def mixed(size: int, seed: int = 0) -> bytes:
    """Runs of noise, text and one byte: chunks of every kind."""
    rng, parts, left = random.Random(seed), [], size
    while left > 0:
        length = min(left, rng.randrange(1, 30_000))
        make: Callable[[int, int], bytes] = rng.choice([noise, text, _one_byte])
        parts.append(make(length, rng.randrange(1 << 30)))
        left -= length
    return b"".join(parts)


class Told:
    """A progress callback that keeps what it is told."""

    def __init__(self) -> None:
        self.size: int | None = None
        self.steps: list[int] = []

    def set_size(self, size: int) -> None:
        self.size = size

    def relative_update(self, inc: int = 1) -> None:
        self.steps.append(inc)


class Blocks:
    """A source that hands out what it likes, whatever was asked for."""

    def __init__(self, *blocks: Any) -> None:
        self.blocks = list(blocks)

    def read(self, size: int, /) -> Any:
        assert size > 0
        block = self.blocks.pop(0) if self.blocks else b""
        if isinstance(block, BaseException):
            raise block
        return block


def forked(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child, or the error that it raises there."""
    parent, child = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            answer = work()
        except BaseException as error:
            answer = error
        child.send(answer)
        os._exit(0)
    child.close()
    try:
        return parent.recv()
    finally:
        os.waitpid(pid, 0)


fork_is_fine = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _one_byte(size: int, seed: int) -> bytes:
    return bytes([seed % 256]) * size
