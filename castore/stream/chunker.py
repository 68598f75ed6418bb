"""Where a stream of bytes is cut into chunks: the strided gear.

64 gear hashes are interleaved, one for each byte position modulo 64, so that a whole row of 64
positions is computed at once with SIMD and no table. With `b` the bytes, 32-bit lanes, little
endian:

    d(i)   = LE32(b + i - 4) + LE32(b + i - 9)
    phi(i) = s16lo(d(i)) * k0 + s16hi(d(i)) * k1
    X(i)   = (X(i - 64) << 3) xor phi(i)

A chunk [start, i) ends at the first i with X(i) >= T1 while it is shorter than `norm` (and at
least `min`), with X(i) >= T2 from there to `max`; failing that, where X is largest in
[norm, max), the last of equals; and if that largest is 0, at `max`. T1 = 2^32 - 2^32 / (4 norm)
and T2 = 2^32 - 4 * 2^32 / norm. A tail of fewer than 256 bytes joins the chunk before it.

k0 = 0x6af1 and k1 = 0x50ab are part of the format. No run of one byte comes to an X of
2^32 - 2^22 with them; over packages, tables, text, machine code and records of many sizes, the
mean chunk at the usual sizes (16, 64, 256 KiB) stays within a factor of 1.2 of 75 KiB, and 2
chunks in 1,000 are forced. bench/choose_multipliers.py has the evidence, bench/bench_chunker.py
the comparison with FastCDC.

X(i) depends on 649 bytes, all of them inside the chunk. So the cuts depend on the bytes alone: not
on how they arrive, nor on the machine, nor on which implementation runs.
"""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

try:
    from castore import _native
except ImportError:
    _native = None  # type: ignore[assignment]

ROW_BYTES = 64
TAIL_BYTES = 256
CHUNK_BYTES_MIN_MIN = 704
CHUNK_BYTES_MAX_MAX = 1 << 30


class _Sizes(NamedTuple):
    min: int
    norm: int
    max: int


class ChunkSizes(_Sizes):
    """The smallest, usual and largest chunk, in bytes; multiples of 64. A store never changes them.

    Only the last chunk of an object may be smaller than `min`, or larger than `max` (by fewer than
    256 bytes).
    """

    __slots__ = ()

    def __new__(cls, min: int, norm: int, max: int) -> ChunkSizes:
        if not CHUNK_BYTES_MIN_MIN <= min <= norm <= max <= CHUNK_BYTES_MAX_MAX:
            raise ValueError(
                f"chunk sizes must be {CHUNK_BYTES_MIN_MIN} <= min <= norm <= max <= "
                f"{CHUNK_BYTES_MAX_MAX}, not {min}, {norm}, {max}"
            )
        if min % ROW_BYTES or norm % ROW_BYTES or max % ROW_BYTES:
            raise ValueError(
                f"chunk sizes must be multiples of {ROW_BYTES}, not {min}, {norm}, {max}"
            )
        return super().__new__(cls, min, norm, max)

    @classmethod
    def for_average(cls, average: int) -> ChunkSizes:
        """A quarter of the average to four times it; the average a multiple of 256 bytes."""
        if average % (4 * ROW_BYTES) or average < 4 * CHUNK_BYTES_MIN_MIN:
            raise ValueError(
                f"the average chunk size (chunk_bytes_avg) must be a multiple of {4 * ROW_BYTES} "
                f"bytes and at least {4 * CHUNK_BYTES_MIN_MIN}, not {average}"
            )
        return cls(average // 4, average, average * 4)


class Chunker:
    """Finds the cuts for one choice of sizes. It keeps no state: use it from any thread."""

    __slots__ = ("_sizes",)

    def __init__(self, sizes: ChunkSizes) -> None:
        self._sizes = sizes
        if _native is None:
            _warn_once()

    @property
    def sizes(self) -> ChunkSizes:
        return self._sizes

    @property
    def lookahead(self) -> int:
        """With this many bytes after the start of a chunk, its end is always decided."""
        return self._sizes.max + TAIL_BYTES

    def next_cut(self, buffer: Buffer, start: int, final: bool) -> int | None:
        """The end of the chunk that starts at `start`, an offset into the buffer.

        None: nothing is left, or the input goes on behind the buffer (it isn't `final`) and fewer
        than `lookahead` bytes of it are there.
        """
        sizes = self._sizes
        if _native is None:
            return _reference().next_cut(buffer, start, final, sizes.min, sizes.norm, sizes.max)
        cut = _native.next_cut(buffer, start, final, sizes.min, sizes.norm, sizes.max)
        return None if cut < 0 else cut

    def cuts(
        self, buffer: Buffer, start: int, final: bool, *, until: int | None = None
    ) -> list[int]:
        """The ends of successive chunks, the first of which starts at `start`.

        They stop where `next_cut` would return None, or at the first one that reaches `until`.
        """
        sizes = self._sizes
        if _native is None:
            return _reference().cut_all(
                buffer, start, final, sizes.min, sizes.norm, sizes.max, until
            )
        if until is None:
            return _native.cut_all(buffer, start, final, sizes.min, sizes.norm, sizes.max)
        return _native.cut_all(buffer, start, final, sizes.min, sizes.norm, sizes.max, until)


def is_incompressible(buffer: Buffer) -> bool:
    """Whether compression is pointless: 16 samples of 256 bytes, spread evenly, have an order-0
    entropy above 7.93 bits a byte. Always false for fewer than 4,096 bytes.
    """
    if _native is None:
        return _reference().is_incompressible(buffer)
    return _native.is_incompressible(buffer)


def implementation() -> str:
    """What cuts in this process: "avx512bw", "avx2", "portable", "numpy" or "python"."""
    if _native is None:
        return _reference().implementation()
    return _native.variant()


_warned = False


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        rate = {"numpy": "0.2 GB/s", "python": "1 MB/s"}[implementation()]
        warnings.warn(
            f"castore's C extension isn't built: {implementation()} cuts files into chunks at "
            f"about {rate} instead of 10 GB/s, at the same places, and no deltas are stored. "
            "Install a C compiler (gcc or clang) and reinstall castore.",
            RuntimeWarning,
            stacklevel=3,
        )


def _reference() -> ModuleType:
    # Loaded only without the extension: it imports numpy, which takes a while.
    from castore.stream import chunker_reference

    return chunker_reference
