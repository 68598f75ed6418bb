"""Every implementation cuts at the same places: those of the definition, and those of version 1."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import mmap
import random
import shutil
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import GOLDEN as GOLDEN_FOLDER
from places import ROOT

from castore.stream import chunker, chunker_reference
from castore.stream.chunker import Chunker, ChunkSizes

try:
    from castore import _native
except ImportError:
    _native = None  # type: ignore[assignment]

GOLDEN = GOLDEN_FOLDER / "cut_points.json"
USUAL = ChunkSizes(16384, 65536, 262144)
SMALL = ChunkSizes(704, 1408, 2816)
SIZES = [
    SMALL,
    ChunkSizes(704, 704, 704),
    ChunkSizes(704, 704, 2816),
    ChunkSizes(704, 2816, 2816),
    ChunkSizes(768, 1024, 4096),
    ChunkSizes(1088, 1600, 1664),
]
Cutter = Callable[[bytes | memoryview, int, bool, ChunkSizes], list[int]]


# ---- the definition, word for word, as slow as it likes -----------------------------------------


def defined_states(data: bytes) -> list[int]:
    """X at every position, in one run over the data: what is far back is shifted out anyway."""

    def word(at: int) -> int:
        return int(struct.unpack_from("<I", data, at)[0])

    def signed(half: int) -> int:
        return half - 0x10000 if half & 0x8000 else half

    states = [0] * len(data)
    for i in range(9, len(data)):
        d = (word(i - 4) + word(i - 9)) % 2**32
        phi = signed(d & 0xFFFF) * 0x6AF1 + signed(d >> 16) * 0x50AB
        states[i] = ((states[i - 64] << 3 if i >= 64 else 0) ^ phi) % 2**32
    return states


def defined_cuts(data: bytes, sizes: ChunkSizes) -> list[int]:
    states = defined_states(data)
    t1 = 2**32 - 2**32 // (4 * sizes.norm)
    t2 = 2**32 - 4 * 2**32 // sizes.norm
    ends: list[int] = []
    start = 0
    while start < len(data):
        end = None
        for i in range(start + sizes.min, min(start + sizes.max, len(data))):
            if states[i] >= (t1 if i - start < sizes.norm else t2):
                end = i
                break
        if end is None and len(data) - start >= sizes.max:
            last = range(start + sizes.norm, start + sizes.max)
            end = max(last, key=lambda i: (states[i], i), default=start + sizes.max)
            if end < start + sizes.max and states[end] == 0:
                end = start + sizes.max
        if end is None or len(data) - end < 256:
            end = len(data)
        ends.append(end)
        start = end
    return ends


# ---- the implementations ------------------------------------------------------------------------


def native_cutter(variant: str) -> Cutter:
    def cut(data: bytes | memoryview, start: int, final: bool, sizes: ChunkSizes) -> list[int]:
        chosen = _native.variant()
        _native.select_variant(variant)
        try:
            return _native.cut_all(data, start, final, sizes.min, sizes.norm, sizes.max)
        finally:
            _native.select_variant(chosen)

    return cut


def reference_cutter(arithmetic: chunker_reference.Arithmetic) -> Cutter:
    def cut(data: bytes | memoryview, start: int, final: bool, sizes: ChunkSizes) -> list[int]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunker_reference, "_arithmetic", arithmetic)
            return chunker_reference.cut_all(data, start, final, sizes.min, sizes.norm, sizes.max)

    return cut


CUTTERS: dict[str, Cutter] = {"python": reference_cutter(chunker_reference.PlainArithmetic())}
if importlib.util.find_spec("numpy") is not None:
    CUTTERS["numpy"] = reference_cutter(chunker_reference.NumpyArithmetic())
if _native is not None:
    CUTTERS |= {variant: native_cutter(variant) for variant in _native.variants()}
FAST = sorted(set(CUTTERS) - {"python"})

every_cutter = pytest.mark.parametrize("name", sorted(CUTTERS))
every_fast_cutter = pytest.mark.parametrize("name", FAST)
needs_native = pytest.mark.skipif(_native is None, reason="the C extension isn't built")


# ---- what is cut --------------------------------------------------------------------------------


def content(kind: str, seed: int, length: int) -> bytes:
    chance = random.Random(seed)
    if kind == "zeros":
        return bytes(length)
    if kind == "constant":
        return bytes([chance.randrange(256)]) * length
    if kind == "random":
        return chance.randbytes(length)
    if kind == "periodic":
        period = chance.choice([2, 3, 7, 48, 63, 64, 65, 128, 192, 1000])
        return (chance.randbytes(period) * (length // period + 1))[:length]
    if kind == "records":
        fields = [chance.randbytes(8) for _ in range(4)]
        rows = (
            struct.pack("<Q8sQd32x", row, chance.choice(fields), row % 7, row / 4)
            for row in range(length // 64 + 1)
        )
        return b"".join(rows)[:length]
    if kind == "text":
        words = [b"name", b"object", b"chunk", b"frame", b"pack", b"\n", b"index", b", "]
        return b" ".join(chance.choices(words, k=length // 3 + 1))[:length]
    if kind == "few values":
        return bytes(chance.choices(b"\x00\x01\xff", k=length))
    if kind == "sparse":
        sparse = bytearray(length)
        for _ in range(length // 500):
            sparse[chance.randrange(length)] = chance.randrange(256)
        return bytes(sparse)
    raise ValueError(kind)


KINDS = ["zeros", "constant", "random", "periodic", "records", "text", "few values", "sparse"]
contents = st.builds(content, st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(0, 14_000))


@given(contents, st.sampled_from(SIZES))
@settings(deadline=None, max_examples=300)
def test_every_implementation_cuts_as_defined(data: bytes, sizes: ChunkSizes) -> None:
    expected = defined_cuts(data, sizes)
    assert {name: cut(data, 0, True, sizes) for name, cut in CUTTERS.items()} == dict.fromkeys(
        CUTTERS, expected
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_usual_sizes(kind: str) -> None:
    data = content(kind, 5, 1_500_000)
    results = {tuple(CUTTERS[name](data, 0, True, USUAL)) for name in FAST}
    assert len(results) == 1
    ends = list(results.pop())
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert sum(lengths) == len(data)
    assert all(USUAL.min <= length <= USUAL.max for length in lengths[:-1])
    assert 256 <= lengths[-1] < USUAL.max + 256


@given(
    contents,
    st.sampled_from(SIZES),
    st.lists(st.one_of(st.integers(1, 64), st.integers(1, 6000)), min_size=1, max_size=40),
)
@settings(deadline=None, max_examples=100)
def test_cuts_do_not_depend_on_how_the_bytes_arrive(
    data: bytes, sizes: ChunkSizes, blocks: list[int]
) -> None:
    cutter = Chunker(sizes)
    ends: list[int] = []
    arrived = 0
    while arrived < len(data):
        arrived = min(arrived + blocks[len(ends) % len(blocks)], len(data))
        start = ends[-1] if ends else 0
        ends += cutter.cuts(memoryview(data)[:arrived], start, False)
    ends += cutter.cuts(data, ends[-1] if ends else 0, True)
    assert ends == cutter.cuts(data, 0, True)


@every_cutter
def test_one_byte_at_a_time(name: str) -> None:
    data = content("text", 3, 9_000)
    ends: list[int] = []
    for arrived in range(1, len(data) + 1):
        start = ends[-1] if ends else 0
        if arrived - start >= SMALL.max + 200 or arrived < 20:  # else nothing can be decided
            ends += CUTTERS[name](memoryview(data)[:arrived], start, False, SMALL)
    ends += CUTTERS[name](data, ends[-1] if ends else 0, True, SMALL)
    assert ends == defined_cuts(data, SMALL)


@every_fast_cutter
def test_cuts_do_not_depend_on_alignment(name: str) -> None:
    data = content("random", 11, 20_000)
    expected = CUTTERS[name](data, 0, True, SMALL)
    for shift in range(70):
        moved = bytes(shift) + data
        assert CUTTERS[name](memoryview(moved)[shift:], 0, True, SMALL) == expected
        assert CUTTERS[name](moved, shift, True, SMALL) == [end + shift for end in expected]


def test_cuts_come_back_together_after_an_insertion() -> None:
    data = content("random", 12, 2_000_000)
    ends = set(Chunker(USUAL).cuts(data, 0, True))
    shifted = {end - 7 for end in Chunker(USUAL).cuts(b"7 bytes" + data, 0, True)}
    assert max(ends - shifted, default=0) < 600_000


# ---- the end of the input -----------------------------------------------------------------------


@every_cutter
@pytest.mark.parametrize("kind", ["random", "zeros", "constant", "text"])
def test_a_short_tail_joins_the_chunk_before_it(name: str, kind: str) -> None:
    data = content(kind, 21, 12_000)
    first = defined_cuts(data, SMALL)[0]
    for length in [*range(first + 250, first + 262), SMALL.max, SMALL.max + 255, SMALL.max + 256]:
        ends = CUTTERS[name](data[:length], 0, True, SMALL)
        assert ends == defined_cuts(data[:length], SMALL)
        assert ends[0] == (first if length - first >= 256 else length)


@every_cutter
def test_zeros_are_cut_at_the_maximum(name: str) -> None:
    data = bytes(3 * SMALL.max + 255)
    expected = [SMALL.max, 2 * SMALL.max, len(data)]
    assert CUTTERS[name](data, 0, True, SMALL) == expected


@every_cutter
@pytest.mark.parametrize("length", [0, 1, 255, 256, 703, 704, 959, 960, 961])
def test_short_inputs(name: str, length: int) -> None:
    data = content("random", 23, length)
    assert CUTTERS[name](data, 0, False, SMALL) == []
    assert CUTTERS[name](data, 0, True, SMALL) == defined_cuts(data, SMALL)


@every_cutter
def test_nothing_is_decided_without_the_lookahead(name: str) -> None:
    data = content("random", 24, 4 * SMALL.max)
    lookahead = Chunker(SMALL).lookahead
    assert lookahead == SMALL.max + 256
    first = CUTTERS[name](data, 0, True, SMALL)[0]
    assert CUTTERS[name](data[: lookahead - 1], 0, False, SMALL) == []
    assert CUTTERS[name](data[:lookahead], 0, False, SMALL) == [first]


# ---- what a kernel may read ---------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect by its Linux numbers")
@every_fast_cutter
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.long)])
def test_reads_stay_inside_the_buffer(name: str, step: int) -> None:
    page = mmap.PAGESIZE
    pages = mmap.mmap(-1, 10 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (base, base + 9 * page):
        assert libc.mprotect(ctypes.c_void_p(guard), page, 0) == 0
    room = (ctypes.c_char * (8 * page)).from_address(base + page)
    data = content("records", 31, 8 * page)
    ctypes.memmove(room, data, len(data))
    for length in [*range(8 * page - 299, 8 * page, step), *range(700, 1100, 7)]:
        at_the_start = memoryview(room)[:length].cast("B")
        assert CUTTERS[name](at_the_start, 0, True, SMALL) == CUTTERS[name](
            data[:length], 0, True, SMALL
        )
        at_the_end = memoryview(room)[-length:].cast("B")
        assert CUTTERS[name](at_the_end, 0, True, SMALL) == CUTTERS[name](
            data[-length:], 0, True, SMALL
        )


SHIM = """
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#undef _mm512_madd_epi16 /* some versions give it the masked one's arguments */
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
"""


def test_the_avx512_kernel_under_emulation(tmp_path: Path) -> None:
    """The very source, compiled against SIMDe: for machines whose CPU has no AVX-512."""
    compiler = shutil.which("cc")
    if compiler is None or not Path("/usr/include/simde/x86/avx512.h").exists():
        pytest.skip("needs a C compiler and SIMDe's headers (Debian: libsimde-dev)")
    (tmp_path / "immintrin.h").write_text(SHIM)
    library = tmp_path / "kernel.so"
    source = ROOT / "castore" / "native" / "kernel.c"
    flags = ["-O1", "-shared", "-fPIC", "-w", "-DSIMDE_NO_NATIVE", "-DTARGET(isa)="]
    subprocess.run([compiler, *flags, f"-I{tmp_path}", source, "-o", library], check=True)

    class Variant(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p),
            ("first_at_least", ctypes.c_void_p),
            ("last_largest", ctypes.c_void_p),
        )

    kernel = ctypes.CDLL(str(library))
    variant = Variant.in_dll(kernel, "gear_variants")
    if variant.name != b"avx512bw":
        pytest.skip("not an x86-64 machine")
    kernel.gear_next_cut.restype = ctypes.c_size_t
    for kind in KINDS:
        for sizes in [*SIZES, USUAL]:
            data = content(kind, 41, 400_000 if sizes is USUAL else 30_000)
            raw_sizes = (ctypes.c_size_t * 3)(sizes.min, sizes.norm, sizes.max)
            ends = [0]
            while ends[-1] < len(data):
                end = kernel.gear_next_cut(
                    ctypes.byref(variant),
                    data,
                    ctypes.c_size_t(len(data)),
                    ctypes.c_size_t(ends[-1]),
                    ctypes.c_bool(True),
                    raw_sizes,
                )
                ends.append(end)
            assert ends[1:] == CUTTERS[FAST[0]](data, 0, True, sizes)


# ---- version 1's cut points ---------------------------------------------------------------------


def golden_inputs() -> Iterator[tuple[str, bytes]]:
    """Made by nothing but SHA-256, so that any language can make them again."""
    digests = b"".join(hashlib.sha256(struct.pack("<Q", n)).digest() for n in range(65536))
    yield "sha256", digests  # 2 MiB: SHA-256 of 0, 1, 2, ... as 8 bytes, little endian
    yield "two-values", digests.translate(bytes([0] * 128 + [1] * 128))
    yield "letters", digests.translate(bytes(b"acgt"[n % 4] for n in range(256)))
    yield (
        "hex-lines",
        b"".join(digests[n : n + 16].hex().encode() + b"\n" for n in range(0, 2**20, 16)),
    )
    yield (
        "records",
        b"".join(
            struct.pack("<Q", n) + digests[n % 97 : n % 97 + 8] + bytes(48) for n in range(16384)
        ),
    )
    yield "period-4099", digests[:4099] * 256
    yield "sparse", b"".join(bytes(4000) + digests[n : n + 32] for n in range(0, 2**14, 32))
    yield "zeros", bytes(2**20)
    yield "ones", b"\x01" * 2**20


GOLDEN_SIZES = [USUAL, ChunkSizes.for_average(8192)]


@every_fast_cutter
def test_golden_cut_points(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    found = [
        {
            "input": title,
            "sha256": hashlib.sha256(data).hexdigest(),
            "sizes": [sizes.min, sizes.norm, sizes.max],
            "ends": CUTTERS[name](data, 0, True, sizes),
        }
        for title, data in golden_inputs()
        for sizes in GOLDEN_SIZES
    ]
    assert found == golden


# ---- the layer above the kernels ----------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [(640, 1408, 2816), (704, 700, 2816), (704, 1408, 1344), (705, 1408, 2816), (704, 1409, 2816),
     (704, 1408, 2817), (-704, 1408, 2816), (704, 1408, 2**30 + 64)],
)  # fmt: skip
def test_sizes_that_make_no_sense(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="chunk sizes must be"):
        ChunkSizes(*bad)


def test_sizes_for_an_average() -> None:
    assert ChunkSizes.for_average(65536) == USUAL
    assert ChunkSizes.for_average(2816) == ChunkSizes(704, 2816, 11264)
    for bad in (0, -65536, 2560, 65536 + 64):
        with pytest.raises(ValueError, match="average chunk size"):
            ChunkSizes.for_average(bad)


def test_next_cut_walks_the_same_cuts() -> None:
    data = content("text", 51, 50_000)
    cutter = Chunker(SMALL)
    ends: list[int] = []
    while (end := cutter.next_cut(data, ends[-1] if ends else 0, True)) is not None:
        ends.append(end)
    assert ends == cutter.cuts(data, 0, True)
    assert cutter.next_cut(data[:1000], 0, False) is None
    assert cutter.sizes == SMALL


def test_until_bounds_the_work() -> None:
    data = content("random", 52, 50_000)
    cutter = Chunker(SMALL)
    ends = cutter.cuts(data, 0, True)
    assert cutter.cuts(data, 0, True, until=0) == []
    assert cutter.cuts(data, 0, True, until=1) == ends[:1]
    assert cutter.cuts(data, 0, True, until=ends[3]) == ends[:4]
    assert cutter.cuts(data, 0, True, until=ends[3] + 1) == ends[:5]
    assert cutter.cuts(data, 0, True, until=10**9) == ends


def test_a_start_outside_the_buffer_is_refused() -> None:
    for start in (-1, 11):
        with pytest.raises(ValueError, match="start"):
            Chunker(SMALL).next_cut(bytes(10), start, True)
        with pytest.raises(ValueError, match="start"):
            Chunker(SMALL).cuts(bytes(10), start, True)


def test_without_the_extension_one_warning_and_the_same_cuts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = content("text", 53, 30_000)
    expected = Chunker(SMALL).cuts(data, 0, True)
    monkeypatch.setattr(chunker, "_native", None)
    monkeypatch.setattr(chunker, "_warned", False)
    with pytest.warns(
        RuntimeWarning, match=r"C extension isn't built.*no deltas.*C compiler"
    ) as warned:
        cutter = Chunker(SMALL)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Chunker(SMALL)
    assert chunker.implementation() in ("numpy", "python")
    assert cutter.cuts(data, 0, True) == expected
    assert cutter.cuts(data, 0, True, until=1) == expected[:1]
    assert cutter.next_cut(data, 0, True) == expected[0]
    for start in (-1, 30_001):
        with pytest.raises(ValueError, match="start"):
            cutter.next_cut(data, start, True)
        with pytest.raises(ValueError, match="start"):
            cutter.cuts(data, start, True)


@needs_native
def test_the_fastest_kernel_is_chosen() -> None:
    assert chunker.implementation() == _native.variants()[0]


# ---- is it worth compressing? -------------------------------------------------------------------


def test_random_bytes_are_incompressible_and_text_is_not() -> None:
    for length in (4096, 65536, 262_144 + 17):
        assert chunker.is_incompressible(content("random", 61, length))
        assert not chunker.is_incompressible(content("text", 61, length))
    assert not chunker.is_incompressible(content("random", 61, 4095))
    assert not chunker.is_incompressible(b"")


@needs_native
@given(st.integers(0, 2**32), st.integers(200, 256), st.integers(4000, 20_000), st.integers(0, 300))
@settings(deadline=None, max_examples=200)
def test_both_gates_decide_alike(seed: int, values: int, length: int, zeros: int) -> None:
    chance = random.Random(seed)
    data = bytes(chance.choices(range(values), k=length)) + bytes(zeros)
    assert _native.is_incompressible(data) == chunker_reference.is_incompressible(data)
