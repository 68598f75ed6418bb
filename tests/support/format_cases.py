"""Bytes of every layout, and damage to them."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import xxhash
import zstandard
from places import GOLDEN as GOLDEN_FOLDER

from castore.errors import FormatError
from castore.format import CHUNK_BYTES_LIMIT, s3_told
from castore.format import index as rows
from castore.format import segment as layouts
from castore.format.config import StoreConfig, decode_config, encode_config
from castore.format.frame import (
    BASES_MAX,
    CODEC_DELTA,
    CODEC_RAW,
    CODEC_ZSTD,
    FLAG_ID_OF_SHA256,
    FLAG_SHA256,
    Delta,
    FrameHeader,
    decode_frame_header,
    delta_checksum,
    encode_frame_header,
)
from castore.format.pack import (
    PackEntry,
    decode_footer,
    decode_pack_config,
    decode_pack_header,
    encode_footer,
    encode_pack_header,
)
from castore.model import Extent, Location, StoredChunk
from castore.stream import codec

GOLDEN = json.loads((GOLDEN_FOLDER / "format_v1.json").read_text())


SEED = 0x0123456789ABCDEF


STORE_ID = bytes(range(16))


PACK_IDS = [bytes([i]) * 16 for i in range(0xA0, 0xA4)]


TEXT = b"".join(b"%05d the quick brown fox\n" % i for i in range(40))


SHA256 = codec.sha256_of(TEXT)


TEXT_ID = codec.chunk_id_of(TEXT, SEED)


def checksum(data: bytes, seed: int = 0) -> bytes:
    return xxhash.xxh3_64_intdigest(data, seed).to_bytes(8, "little")


def config(guard: str | None = None) -> StoreConfig:
    return StoreConfig(STORE_ID, SEED, 16384, 65536, 262144, guard)


def extents(count: int = 5, begin: int = 1000) -> list[Extent]:
    made = []
    for i in range(count):
        end = begin + 700 + 13 * i
        location = Location(PACK_IDS[i % 3], 64 + 5000 * i, 732 + i)
        made.append(Extent(begin, end, bytes([i % 251]) * 16, location))
        begin = end
    return made


def segment(of: list[Extent]) -> bytes:
    builder = layouts.SegmentBuilder(of[0].begin)
    for extent in of:
        builder.append(extent.end, extent.chunk_id, extent.location)
    return builder.encode()


ENTRIES = [PackEntry(bytes([i]) * 16, 64 + 800 * i, 800, 1000 + i) for i in range(4)]


FOOTER_OFFSET = 64 + 800 * 4


RAW_HEADER = FrameHeader(CODEC_RAW, 0, len(TEXT), len(TEXT), TEXT_ID)


ZSTD_PAYLOAD = bytes.fromhex(GOLDEN["zstd payload of the text"])


ZSTD_HEADER = FrameHeader(CODEC_ZSTD, 0, len(TEXT), len(ZSTD_PAYLOAD), TEXT_ID)


GUARDED_HEADER = FrameHeader(CODEC_ZSTD, FLAG_SHA256, len(TEXT), len(ZSTD_PAYLOAD), TEXT_ID, SHA256)


GUARDED_ID_HEADER = FrameHeader(
    CODEC_RAW,
    FLAG_SHA256 | FLAG_ID_OF_SHA256,
    len(TEXT),
    len(TEXT),
    codec.guarded_id(SHA256, SEED),
    SHA256,
)


INLINE = rows.Record(5, 1767225600_123456789, 0o640, b"\x11" * 16, 5, inline=b"hello")


INLINE_ZSTD = rows.Record(
    len(TEXT),
    1767225600_000000000,
    0o4755,
    b"\x22" * 16,
    len(ZSTD_PAYLOAD),
    codec=CODEC_ZSTD,
    inline=ZSTD_PAYLOAD,
)


EXTENTS = rows.Record(1 << 40, -1, 0o644, b"\x33" * 16, 1 << 39, chunks=1 << 24, manifest=77)


TOTALS = rows.Totals(1 << 50, 2, 3, 1 << 49, 5)


# ---- what a store has that has deltas

BASES = [TEXT[:500], TEXT[400:].upper()]


BASE_IDS = [codec.chunk_id_of(base, SEED) for base in BASES]


DELTA_PAYLOAD = bytes.fromhex(GOLDEN["delta payload of the text"])


def delta(sha256: bytes = b"") -> FrameHeader:
    """The frame's header, with the right checksum."""
    of = tuple((chunk_id, len(base)) for chunk_id, base in zip(BASE_IDS, BASES, strict=True))
    header = FrameHeader(
        CODEC_DELTA,
        FLAG_SHA256 if sha256 else 0,
        len(TEXT),
        len(DELTA_PAYLOAD),
        TEXT_ID,
        sha256,
        Delta(of, 0),
    )
    checksum = delta_checksum(header, DELTA_PAYLOAD)
    return header._replace(delta=Delta(of, checksum))


def base(chunk_id: bytes, raw_bytes: int) -> bytes:
    """Of the text's delta."""
    found = dict(zip(BASE_IDS, BASES, strict=True)).get(chunk_id, b"")
    if len(found) != raw_bytes:
        raise FormatError(f"there is no base {chunk_id.hex()}")
    return found


def extents_of_deltas(count: int = 5, begin: int = 1000) -> list[Extent]:
    """All but every fourth of them are deltas; some have the same bases."""
    bases = [
        StoredChunk(bytes([0xB0 + i]) * 16, 3000 + i, Location(PACK_IDS[3 - i % 2], 9000 * i, 2000))
        for i in range(4)
    ]
    made = []
    for i, extent in enumerate(extents(count, begin)):
        used = tuple(bases[(i + j) % 4] for j in range(i % 4))
        made.append(extent._replace(location=extent.location._replace(bases=used)))
    return made


DELTA_ENTRIES = [
    entry._replace(bases=tuple(bytes([0xB0 + j]) * 16 for j in range(i % 3)))
    for i, entry in enumerate(ENTRIES)
]


WITH_DELTAS = EXTENTS._replace(source=1 << 63, deltas=1 << 20)


DELTA_ROW = rows.ChunkRow(65536, Location(PACK_IDS[1], 1 << 28, 700), tuple(BASE_IDS))


DELTA_TOTALS = rows.Totals(1 << 50, 2, 3, 1 << 49, 5, 6, 7, 8, 9)


HINTS = [(PACK_IDS[0], ENTRIES), (PACK_IDS[1], DELTA_ENTRIES)]


SPECIMENS: dict[str, bytes] = {
    "config": encode_config(config(), checksum=False),
    "config with collision guard": encode_config(config("sha256"), checksum=False),
    "config with checksum": encode_config(config("sha256")),
    "frame header, raw": encode_frame_header(RAW_HEADER),
    "frame header, zstd": encode_frame_header(ZSTD_HEADER),
    "frame header, zstd with sha256": encode_frame_header(GUARDED_HEADER),
    "frame header, raw, id of sha256": encode_frame_header(GUARDED_ID_HEADER),
    "pack header": encode_pack_header(STORE_ID, PACK_IDS[0]),
    "pack header with config": encode_pack_header(STORE_ID, PACK_IDS[0], config("sha256")),
    "pack footer": encode_footer(ENTRIES, FOOTER_OFFSET),
    "pack footer, no frames": encode_footer([], 64),
    "segment": segment(extents()),
    "record, inline raw": rows.encode_record(INLINE),
    "record, inline zstd": rows.encode_record(INLINE_ZSTD),
    "record, extents": rows.encode_record(EXTENTS),
    "chunk row": rows.encode_chunk_row(rows.ChunkRow(65536, Location(PACK_IDS[1], 1 << 28, 65568))),
    "pack row": rows.encode_pack_row(1767225600_123456789, 256 << 20),
    "totals row": TOTALS.encode(),
    "segment key": rows.segment_key(77, 1 << 40),
    "frame header, delta": encode_frame_header(delta()),
    "frame header, delta with sha256": encode_frame_header(delta(SHA256)),
    "pack footer, deltas": encode_footer(DELTA_ENTRIES, FOOTER_OFFSET),
    "segment, deltas": segment(extents_of_deltas()),
    "record, source": rows.encode_record(EXTENTS._replace(source=1 << 63)),
    "record, deltas": rows.encode_record(WITH_DELTAS),
    "chunk row, delta": rows.encode_chunk_row(DELTA_ROW),
    "totals row, deltas": DELTA_TOTALS.encode(),
    "hints, deltas": s3_told.encode_hints(STORE_ID, HINTS),
    "chunk id": TEXT_ID,
    "chunk id of sha256": codec.guarded_id(SHA256, SEED),
}


def repaired_record(raw: bytes) -> bytes:
    head = raw[:64]
    return head + checksum(raw[72:], xxhash.xxh3_64_intdigest(head)) + raw[72:]


def repaired_segment(raw: bytes) -> bytes:
    begin, count = int.from_bytes(raw[16:24], "little"), int.from_bytes(raw[6:8], "little")
    return raw[:24] + checksum(raw[32:], begin ^ count << 48) + raw[32:]


def repaired_pack_header(raw: bytes) -> bytes:
    return raw[:56] + checksum(raw[:56]) + raw[64:]


def repaired_footer(raw: bytes) -> bytes:
    trailer = raw[-40:-24] + checksum(raw[:-40])
    return raw[:-40] + trailer + checksum(trailer) + raw[-8:]


class Target(NamedTuple):
    """A layout to be mutated: valid bytes of it, a decoder that also uses what it decoded, how to
    make the checksums right again, and whether a newer version has an error of its own."""

    valid: list[bytes]
    decode: Callable[[bytes], object]
    repair: Callable[[bytes], bytes] | None = None
    versioned: bool = False


def use_frame(raw: bytes) -> None:
    """Believes the header, so that the payload is reached whatever it claims."""
    header = decode_frame_header(raw)
    codec.decode_frame(raw, header.chunk_id, header.raw_bytes, SEED, base)


def use_expected_frame(raw: bytes) -> None:
    decoded = codec.decode_frame(raw, TEXT_ID, len(TEXT), SEED, base)
    assert bytes(decoded) == TEXT, "wrong bytes went through"


def use_footer(raw: bytes) -> None:
    for entry in decode_footer(raw, FOOTER_OFFSET + len(raw)):
        assert 64 <= entry.offset <= entry.offset + entry.stored_bytes <= FOOTER_OFFSET


def use_segment(raw: bytes) -> None:
    decoded = layouts.decode_segment(raw)
    list(decoded.covering(decoded.begin, decoded.end))
    list(decoded.frames())
    list(decoded.offsets_by_pack())
    for extent in decoded:
        assert len(extent.location.bases) <= BASES_MAX
        assert 0 < extent.end - extent.begin <= CHUNK_BYTES_LIMIT + 256


def use_pack_header(raw: bytes) -> None:
    decode_pack_header(raw)
    decode_pack_config(raw)


def use_record(raw: bytes) -> None:
    record = rows.decode_record(raw)
    if record.is_inline:
        inline = codec.decode_inline(record.codec, record.inline, record.size)
        assert len(inline) == record.size


def bomb(size: int) -> bytes:
    payload = zstandard.ZstdCompressor().compress(bytes(size))
    header = FrameHeader(CODEC_ZSTD, 0, size, len(payload), bytes(16))
    return encode_frame_header(header) + payload


FRAMES = [
    SPECIMENS["frame header, raw"] + TEXT,
    SPECIMENS["frame header, zstd"] + ZSTD_PAYLOAD,
    SPECIMENS["frame header, zstd with sha256"] + ZSTD_PAYLOAD,
    SPECIMENS["frame header, raw, id of sha256"] + TEXT,
]


DELTAS = [
    SPECIMENS["frame header, delta"] + DELTA_PAYLOAD,
    SPECIMENS["frame header, delta with sha256"] + DELTA_PAYLOAD,
]


TARGETS = {
    "frames": Target([*FRAMES, *DELTAS, bomb(1 << 20)], use_frame),
    "frames of a known chunk": Target([*FRAMES[:3], *DELTAS], use_expected_frame),
    "footers": Target(
        [
            SPECIMENS["pack footer"],
            SPECIMENS["pack footer, deltas"],
            encode_footer(ENTRIES[:1], FOOTER_OFFSET),
        ],
        use_footer,
        repaired_footer,
    ),
    "pack headers": Target(
        [SPECIMENS["pack header"], SPECIMENS["pack header with config"]],
        use_pack_header,
        repaired_pack_header,
        True,
    ),
    "segments": Target(
        [
            SPECIMENS["segment"],
            SPECIMENS["segment, deltas"],
            segment(extents(1)),
            segment(extents(200, 0)),
            segment(extents_of_deltas(90, 0)),
        ],
        use_segment,
        repaired_segment,
    ),
    "records": Target(
        [raw for name, raw in SPECIMENS.items() if name.startswith("record, ")],
        use_record,
        repaired_record,
        True,
    ),
    "configs": Target(
        [SPECIMENS[f"config{more}"] for more in ("", " with collision guard", " with checksum")],
        decode_config,
        versioned=True,
    ),
    "chunk rows": Target(
        [SPECIMENS["chunk row"], SPECIMENS["chunk row, delta"]], rows.decode_chunk_row
    ),
    "pack rows": Target([SPECIMENS["pack row"]], rows.decode_pack_row),
    "totals": Target(
        [SPECIMENS["totals row"], SPECIMENS["totals row, deltas"]], rows.Totals.decode
    ),
    "segment keys": Target([SPECIMENS["segment key"]], rows.manifest_of),
}


EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 26, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]


JSON_PARTS = [
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b"true",
    b'""',
    b"NaN",
    b'"\\u0000"',
    b"[" * 99,
]


def mutated(rng: random.Random, target: Target) -> bytes:
    raw = bytearray(rng.choice(target.valid))
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(8):
            case 0 | 1 if at < len(raw):
                raw[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(raw):
                raw[at] = rng.randrange(256)
            case 3:
                del raw[at : at + rng.choice([1, 2, 8, 1000])]
            case 4:
                raw[at:at] = rng.randbytes(rng.choice([1, 2, 8, 100]))
            case 5:
                other = rng.choice(target.valid)
                raw[at:] = other[rng.randrange(len(other)) :]
            case 6:
                width = rng.choice([1, 2, 4, 8])
                at -= at % width
                number = rng.choice(EXTREMES) % (1 << 8 * width)
                raw[at : at + width] = number.to_bytes(width, "little")
            case 7:
                raw[at : at + rng.randrange(9)] = rng.choice(JSON_PARTS)
    mutant = bytes(raw)
    if target.repair is not None and len(mutant) >= 72 and rng.random() < 0.7:
        mutant = target.repair(mutant)
    return mutant


@contextmanager
def memory_limited(more_bytes: int) -> Iterator[None]:
    """Whoever takes more address space than this gets a MemoryError."""
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + more_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
