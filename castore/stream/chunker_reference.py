"""The chunker in Python: the fallback without the C extension, and the reference for it.

Written for clearness first, and with numpy where it is importable. The cuts are those of
`castore/native/kernel.c`, byte for byte; castore/stream/chunker.py says what they are.
"""

from __future__ import annotations

import functools
import math
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

ROW_BYTES = 64
TAIL_BYTES = 256
WARM_UP_ROWS = 10  # with its own row, 11: older terms are shifted out of 32 bits

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]

_States: TypeAlias = "NDArray[np.uint32]"

# Part of the format; why these two: castore/native/kernel.c.
K0 = 0x6AF1
K1 = 0x50AB

PIECE_BYTES = 1 << 15  # looked at in one go; a cut within wastes half of the work on average


def next_cut(buffer: Buffer, start: int, final: bool, min: int, norm: int, max: int) -> int | None:
    """The end of the chunk that starts at `start`, or None, as `Chunker.next_cut` has it."""
    with memoryview(buffer) as view, view.cast("B") as data:
        if not 0 <= start <= len(data):
            raise ValueError("start must lie in the buffer")
        return _next_cut(_arithmetic, data, start, final, min, norm, max)


def cut_all(
    buffer: Buffer, start: int, final: bool, min: int, norm: int, max: int, until: int | None = None
) -> list[int]:
    """The ends of successive chunks, as `Chunker.cuts` has it."""
    ends: list[int] = []
    with memoryview(buffer) as view, view.cast("B") as data:
        if not 0 <= start <= len(data):
            raise ValueError("start must lie in the buffer")
        while until is None or start < until:
            end = _next_cut(_arithmetic, data, start, final, min, norm, max)
            if end is None:
                break
            ends.append(end)
            start = end
    return ends


def implementation() -> str:
    """ "numpy" or "python"."""
    return _arithmetic.name


def is_incompressible(buffer: Buffer) -> bool:
    """Whether the sampled order-0 entropy is above 7.93 bits a byte, decided as entropy.c does."""
    with memoryview(buffer) as view, view.cast("B") as data:
        if len(data) < 4096:
            return False
        step = (len(data) - 256) // 15
        counts: Counter[int] = Counter()
        for sample in range(16):
            counts.update(data[sample * step : sample * step + 256])
    return sum(map(_scaled_n_log2_n, counts.values())) <= 1_092_532_305


@functools.cache
def _scaled_n_log2_n(n: int) -> int:
    return int(n * math.log2(n) * 65536 + 0.5)


class Arithmetic(Protocol):
    """X over a range of positions, which is a whole number of rows, and two questions about it.

    How the states are held is each implementation's own business.
    """

    name: str

    def states(self, data: memoryview, begin: int, end: int) -> Any:
        """X(i) for i in [begin, end)."""

    def first_at_least(self, states: Any, threshold: int) -> int:
        """Where, from `begin`, the first X of at least the threshold is, or -1."""

    def last_largest(self, states: Any) -> tuple[int, int]:
        """The largest X, and where, from `begin`, the last one is."""


def _next_cut(
    arithmetic: Arithmetic, data: memoryview, start: int, final: bool, min: int, norm: int, max: int
) -> int | None:
    size = len(data)
    remaining = size - start
    if remaining == 0 or (not final and remaining < max + TAIL_BYTES):
        return None
    if remaining < min + TAIL_BYTES:
        return size
    # Only positions that leave a whole tail can cut, so there are whole rows up to the last.
    positions = size - TAIL_BYTES + 1 - (start + min)
    rows = (positions + ROW_BYTES - 1) // ROW_BYTES
    end = start + (max if remaining >= max else min + rows * ROW_BYTES)
    eased = start + norm if start + norm < end else end

    cut = _first_at_least(arithmetic, data, start + min, eased, 2**32 - 2**30 // norm)
    if cut is None:
        cut = _first_at_least(arithmetic, data, eased, end, 2**32 - 2**34 // norm)
    if cut is None and remaining < max:
        return size
    if cut is None:
        cut = _last_largest(arithmetic, data, eased, end)
    return size if size - cut < TAIL_BYTES else cut


def _first_at_least(
    arithmetic: Arithmetic, data: memoryview, begin: int, end: int, threshold: int
) -> int | None:
    for piece in range(begin, end, PIECE_BYTES):
        piece_end = piece + PIECE_BYTES if piece + PIECE_BYTES < end else end
        index = arithmetic.first_at_least(arithmetic.states(data, piece, piece_end), threshold)
        if index >= 0:
            return piece + index
    return None


def _last_largest(arithmetic: Arithmetic, data: memoryview, begin: int, end: int) -> int:
    """Where a chunk without a cut of its own is cut: content decides even there."""
    if begin == end:
        return end
    largest, index = arithmetic.last_largest(arithmetic.states(data, begin, end))
    return begin + index if largest else end


class PlainArithmetic:
    """Nothing but Python."""

    name = "python"

    def states(self, data: memoryview, begin: int, end: int) -> list[int]:
        first = begin - WARM_UP_ROWS * ROW_BYTES
        count = (end - first) // 4
        low, high = _products()
        terms = [0] * (end - first)
        for phase in range(4):
            words = struct.Struct(f"<{count}I")
            near = words.unpack_from(data, first + phase - 4)
            far = words.unpack_from(data, first + phase - 9)
            terms[phase::4] = [
                low[(a + b) & 0xFFFF] + high[(a + b) >> 16 & 0xFFFF]
                for a, b in zip(near, far, strict=True)
            ]
        states = [0] * ROW_BYTES
        found: list[int] = []
        for row in range(0, end - first, ROW_BYTES):
            states = [
                (x << 3 ^ term) & 0xFFFFFFFF
                for x, term in zip(states, terms[row : row + ROW_BYTES], strict=True)
            ]
            if row >= WARM_UP_ROWS * ROW_BYTES:
                found += states
        return found

    def first_at_least(self, states: list[int], threshold: int) -> int:
        return next((index for index, x in enumerate(states) if x >= threshold), -1)

    def last_largest(self, states: list[int]) -> tuple[int, int]:
        largest = max(states)
        return largest, len(states) - 1 - states[::-1].index(largest)


@functools.cache
def _products() -> tuple[list[int], list[int]]:
    """k0 and k1 times every signed 16-bit number, by its unsigned value."""
    signed = [*range(0x8000), *range(-0x8000, 0)]
    return [K0 * number for number in signed], [K1 * number for number in signed]


class NumpyArithmetic:
    """The same, many rows at a time.

    A position's place is [position % 4, position // 4]: within a phase, the 32-bit words that are
    read lie side by side, and a row is 16 places.
    """

    name = "numpy"

    def states(self, data: memoryview, begin: int, end: int) -> _States:
        first = begin - WARM_UP_ROWS * ROW_BYTES
        shape = (4, (end - first) // 4)
        strides = (1, 4)
        near: _States = np.ndarray(shape, "<u4", data, first - 4, strides)
        d = near + np.ndarray(shape, "<u4", data, first - 9, strides)
        low = (d << np.uint32(16)).view(np.int32) >> 16
        high = d.view(np.int32) >> 16
        states: _States = (low * np.int32(K0) + high * np.int32(K1)).view(np.uint32)
        # Each pass doubles how many rows are summed: 2, 4, 8, 16, those past 11 shifted out.
        for rows in (1, 2, 4, 8):
            states[:, 16 * rows :] ^= states[:, : -16 * rows] << np.uint32(3 * rows)
        return states[:, 16 * WARM_UP_ROWS :]

    def first_at_least(self, states: _States, threshold: int) -> int:
        hits = np.flatnonzero(states >= threshold)
        return int(_positions(hits, states).min()) if len(hits) else -1

    def last_largest(self, states: _States) -> tuple[int, int]:
        largest = states.max()
        return int(largest), int(_positions(np.flatnonzero(states == largest), states).max())


def _positions(places: NDArray[np.intp], states: _States) -> NDArray[np.intp]:
    phase, word = np.divmod(places, states.shape[1])
    return 4 * word + phase


_arithmetic: Arithmetic = PlainArithmetic() if np is None else NumpyArithmetic()
