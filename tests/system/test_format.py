"""The bytes of format version 1: pinned, round-tripped, and mutated."""

from __future__ import annotations

import json
import random
import struct
import sys
import tracemalloc
from contextlib import suppress

import pytest
import xxhash
from format_cases import (
    BASE_IDS,
    BASES,
    DELTA_ENTRIES,
    DELTA_PAYLOAD,
    DELTA_ROW,
    DELTA_TOTALS,
    DELTAS,
    ENTRIES,
    EXTENTS,
    EXTREMES,
    FOOTER_OFFSET,
    GOLDEN,
    GUARDED_HEADER,
    GUARDED_ID_HEADER,
    HINTS,
    INLINE,
    INLINE_ZSTD,
    PACK_IDS,
    RAW_HEADER,
    SEED,
    SHA256,
    SPECIMENS,
    STORE_ID,
    TARGETS,
    TEXT,
    TEXT_ID,
    TOTALS,
    WITH_DELTAS,
    ZSTD_HEADER,
    ZSTD_PAYLOAD,
    base,
    bomb,
    checksum,
    config,
    delta,
    extents,
    extents_of_deltas,
    memory_limited,
    mutated,
    repaired_footer,
    repaired_pack_header,
    repaired_record,
    repaired_segment,
    segment,
    use_frame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from castore.errors import FormatError, UnsupportedFormat
from castore.format import CHUNK_BYTES_LIMIT, s3_told
from castore.format import index as rows
from castore.format import segment as layouts
from castore.format.config import StoreConfig, decode_config, encode_config
from castore.format.frame import BASES_MAX, FLAG_ID_OF_SHA256, FLAG_SHA256, decode_frame_header
from castore.format.pack import (
    PackEntry,
    decode_footer,
    decode_pack_config,
    decode_pack_header,
    encode_footer,
    encode_pack_header,
)
from castore.model import SEGMENT_EXTENTS_MAX, Extent, Location, StoredChunk
from castore.stream import codec

# ---------------------------------------------------------------- specimens of every layout


@pytest.mark.parametrize("name", SPECIMENS)
def test_version_1_is_encoded_as_it_always_was(name: str) -> None:
    assert SPECIMENS[name].hex() == GOLDEN[name]


def test_every_golden_layout_is_tested() -> None:
    payloads = {"zstd payload of the text", "delta payload of the text"}
    assert set(GOLDEN) == {*SPECIMENS, *payloads}


def test_golden_bytes_decode_to_what_they_meant() -> None:
    raw = {name: bytes.fromhex(golden) for name, golden in GOLDEN.items()}
    assert decode_config(raw["config"]) == config()
    assert decode_config(raw["config with collision guard"]) == config("sha256")
    for name, header, payload in [
        ("frame header, raw", RAW_HEADER, TEXT),
        ("frame header, zstd", ZSTD_HEADER, ZSTD_PAYLOAD),
        ("frame header, zstd with sha256", GUARDED_HEADER, ZSTD_PAYLOAD),
        ("frame header, raw, id of sha256", GUARDED_ID_HEADER, TEXT),
    ]:
        frame = raw[name] + payload
        assert decode_frame_header(frame) == header
        assert codec.decode_frame(frame, header.chunk_id, len(TEXT), SEED) == TEXT
    assert decode_config(raw["config with checksum"]) == config("sha256")
    assert decode_pack_header(raw["pack header"]) == (STORE_ID, PACK_IDS[0])
    assert decode_pack_config(raw["pack header"]) is None
    assert decode_pack_header(raw["pack header with config"]) == (STORE_ID, PACK_IDS[0])
    assert decode_pack_config(raw["pack header with config"]) == config("sha256")
    footer = raw["pack footer"]
    assert decode_footer(footer, FOOTER_OFFSET + len(footer)) == ENTRIES
    assert decode_footer(raw["pack footer, no frames"], 64 + 40) == []
    assert list(layouts.decode_segment(raw["segment"])) == extents()
    assert rows.decode_record(raw["record, inline raw"]) == INLINE
    assert rows.decode_record(raw["record, inline zstd"]) == INLINE_ZSTD
    assert rows.decode_record(raw["record, extents"]) == EXTENTS
    assert codec.decode_inline(INLINE_ZSTD.codec, INLINE_ZSTD.inline, len(TEXT)) == TEXT
    row = rows.ChunkRow(65536, Location(PACK_IDS[1], 1 << 28, 65568))
    assert rows.decode_chunk_row(raw["chunk row"]) == row
    assert rows.decode_pack_row(raw["pack row"]) == (1767225600_123456789, 256 << 20)
    # As versions wrote it that had no checksum.
    assert rows.decode_pack_row(raw["pack row"][:16]) == (1767225600_123456789, 256 << 20)
    assert rows.Totals.decode(raw["totals row"]) == TOTALS
    assert rows.manifest_of(raw["segment key"]) == 77


def test_the_checksum_of_castore_json_is_of_one_line() -> None:
    """As FORMAT.md lays it out, whatever json.dumps does by default."""
    line = (
        f'{{"format": "castore", "version": 1, "store_id": "{STORE_ID.hex()}", '
        f'"seed": "{SEED:016x}", "chunk_bytes": {{"min": 16384, "avg": 65536, "max": 262144}}, '
        '"collision_guard": null}'
    )
    stored = json.loads(encode_config(config()))
    assert stored["checksum"] == xxhash.xxh3_64_hexdigest(line.encode())
    del stored["checksum"]
    assert stored == json.loads(line)


def test_golden_bytes_with_deltas_decode_to_what_they_meant() -> None:
    raw = {name: bytes.fromhex(golden) for name, golden in GOLDEN.items()}
    for name, header in [
        ("frame header, delta", delta()),
        ("frame header, delta with sha256", delta(SHA256)),
    ]:
        frame = raw[name] + raw["delta payload of the text"]
        assert decode_frame_header(frame) == header
        assert codec.decode_frame(frame, TEXT_ID, len(TEXT), SEED, base) == TEXT
        with pytest.raises(FormatError, match=r"its base .* is not known"):
            codec.decode_frame(frame, TEXT_ID, len(TEXT), SEED)
        assert codec.check_frame(frame, TEXT_ID, len(TEXT), SEED) == header
    footer = raw["pack footer, deltas"]
    assert decode_footer(footer, FOOTER_OFFSET + len(footer)) == DELTA_ENTRIES
    segment = layouts.decode_segment(raw["segment, deltas"])
    assert list(segment) == extents_of_deltas()
    assert segment.deltas == 3
    assert rows.decode_record(raw["record, source"]) == EXTENTS._replace(source=1 << 63)
    assert rows.decode_record(raw["record, deltas"]) == WITH_DELTAS
    assert rows.decode_chunk_row(raw["chunk row, delta"]) == DELTA_ROW
    assert rows.Totals.decode(raw["totals row, deltas"]) == DELTA_TOTALS
    assert s3_told.decode_hints(raw["hints, deltas"]) == (STORE_ID, HINTS)


def test_layouts_with_deltas_are_those_of_the_format_page() -> None:
    """Literally, too."""
    head = b"CFRM\x02\0\0\0" + struct.pack("<II", len(TEXT), len(DELTA_PAYLOAD)) + TEXT_ID
    of = b"".join(
        id_ + struct.pack("<I", len(base)) for id_, base in zip(BASE_IDS, BASES, strict=True)
    )
    unsummed = head + struct.pack("<BBHQ", 2, 0, 0, 0) + of
    summed = checksum(DELTA_PAYLOAD, xxhash.xxh3_64_intdigest(unsummed))
    assert SPECIMENS["frame header, delta"] == head + b"\2\0\0\0" + summed + of

    entries = b"".join(struct.pack("<16sIII", *entry[:4]) for entry in DELTA_ENTRIES)
    entries += b"".join(
        struct.pack("<I", i) + id_ for i, entry in enumerate(DELTA_ENTRIES) for id_ in entry.bases
    )
    trailer = struct.pack("<QII", FOOTER_OFFSET, 4, 3) + checksum(entries)
    footer = entries + trailer + checksum(trailer) + b"castfoot"
    assert SPECIMENS["pack footer, deltas"] == footer

    of_deltas = extents_of_deltas()
    bases = list(dict.fromkeys(b for e in of_deltas for b in e.location.bases))
    packs = list(dict.fromkeys(i for e in of_deltas for i in packs_in_order(e)))
    columns = b"".join(
        [
            struct.pack("<5Q", *(e.end for e in of_deltas)),
            *(e.chunk_id for e in of_deltas),
            struct.pack("<5I", *(e.location.offset for e in of_deltas)),
            struct.pack("<5I", *(e.location.stored_bytes for e in of_deltas)),
            struct.pack("<5H", *(packs.index(e.location.pack_id) for e in of_deltas)),
            struct.pack("<5H", 0, 1, 3, 6, 6),  # where each extent's bases end in the next column
            struct.pack("<6H", *(bases.index(b) for e in of_deltas for b in e.location.bases)),
            struct.pack("<4I", *(b.raw_bytes for b in bases)),
            *(b.chunk_id for b in bases),
            struct.pack("<4I", *(b.location.offset for b in bases)),
            struct.pack("<4I", *(b.location.stored_bytes for b in bases)),
            struct.pack("<4H", *(packs.index(b.location.pack_id) for b in bases)),
            *packs,
        ]
    )
    fixed = struct.pack("<4sBBHHHIQ", b"CSEG", 2, 0, 5, len(packs), 4, 0, 1000)
    assert SPECIMENS["segment, deltas"] == fixed + checksum(columns, 1000 ^ 5 << 48) + columns

    fixed = struct.pack("<BBBBIQq", 3, 1, 0, 0, 0o644, 1 << 40, -1) + b"\x33" * 16
    fixed += struct.pack("<QQQ", 1 << 39, 1 << 24, 77)
    tail = struct.pack("<QQ", 1 << 63, 1 << 20)
    record = fixed + checksum(tail, xxhash.xxh3_64_intdigest(fixed)) + tail
    assert SPECIMENS["record, deltas"] == record

    row = struct.pack("<IIIBBH", 65536, 1 << 28, 700, 2, 2, 0) + PACK_IDS[1]
    assert SPECIMENS["chunk row, delta"] == row + b"".join(BASE_IDS)


def packs_in_order(extent: Extent) -> list[bytes]:
    """As a segment comes to name them."""
    at = extent.location
    return [at.pack_id, *(base.location.pack_id for base in at.bases)]


@pytest.mark.parametrize("frame", DELTAS, ids=["plain", "guarded"])
def test_every_flipped_bit_of_a_delta_is_seen(frame: bytes) -> None:
    """Also without its bases; and with others, though nothing in it is wrong."""
    for bit in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(FormatError):
            codec.check_frame(bytes(changed), TEXT_ID, len(TEXT), SEED)
    with pytest.raises(FormatError):
        codec.decode_frame(frame, TEXT_ID, len(TEXT), SEED, lambda _, size: bytes(size))


def test_layouts_are_those_of_the_format_page() -> None:
    """FORMAT.md read literally, with nothing of format.py."""
    frame = SPECIMENS["frame header, zstd with sha256"]
    expected = b"CFRM\x01\x01\0\0" + struct.pack("<II", len(TEXT), len(ZSTD_PAYLOAD))
    assert frame == expected + TEXT_ID + SHA256
    assert xxhash.xxh3_128(TEXT, seed=SEED).digest() == TEXT_ID

    head = struct.pack("<8sHHI", b"castpack", 1, 0, 0) + STORE_ID + PACK_IDS[0] + bytes(8)
    assert SPECIMENS["pack header"] == head + checksum(head)

    entries = b"".join(
        struct.pack("<16sIII", e.chunk_id, e.offset, e.stored_bytes, e.raw_bytes) for e in ENTRIES
    )
    trailer = struct.pack("<QII", FOOTER_OFFSET, 4, 0) + checksum(entries)
    assert SPECIMENS["pack footer"] == entries + trailer + checksum(trailer) + b"castfoot"

    of = extents()
    columns = b"".join(
        [
            struct.pack("<5Q", *(e.end for e in of)),
            *(e.chunk_id for e in of),
            struct.pack("<5I", *(e.location.offset for e in of)),
            struct.pack("<5I", *(e.location.stored_bytes for e in of)),
            struct.pack("<5H", 0, 1, 2, 0, 1),
            *PACK_IDS[:3],
        ]
    )
    head = struct.pack("<4sBBHHHIQ", b"CSEG", 1, 0, 5, 3, 0, 0, 1000)
    assert SPECIMENS["segment"] == head + checksum(columns, 1000 ^ 5 << 48) + columns

    head = struct.pack("<BBBBIQq", 1, 0, 0, 0, 0o640, 5, 1767225600_123456789)
    head += b"\x11" * 16 + struct.pack("<QQQ", 5, 0, 0)
    seed = xxhash.xxh3_64_intdigest(head)
    assert SPECIMENS["record, inline raw"] == head + checksum(b"hello", seed) + b"hello"

    row = struct.pack("<IIIBBH", 65536, 1 << 28, 65568, 1, 0, 0) + PACK_IDS[1]
    assert SPECIMENS["chunk row"] == row
    assert SPECIMENS["segment key"] == struct.pack(">QQ", 77, 1 << 40)


# ---------------------------------------------------------------- round trips

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
id16 = st.binary(min_size=16, max_size=16)


@given(st.builds(StoreConfig, id16, u64, *[st.just(4096)] * 3, st.sampled_from([None])))
def test_configs_round_trip(made: StoreConfig) -> None:
    assert decode_config(encode_config(made)) == made


def test_every_flipped_bit_of_a_config_is_seen_or_means_the_same() -> None:
    """With another seed every chunk would look damaged, and a repair take all objects away."""
    raw = SPECIMENS["config with checksum"]
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit >> 3] ^= 1 << (bit & 7)
        with suppress(FormatError, UnsupportedFormat):
            assert decode_config(bytes(changed)) == config("sha256")


def test_a_config_of_other_sizes_is_not_in_pack_headers() -> None:
    odd = config()._replace(chunk_bytes_min=704)
    raw = encode_pack_header(STORE_ID, PACK_IDS[0], odd)
    assert decode_pack_config(raw) is None


@given(
    size=st.integers(1, 2**62),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
    mode=u32,
    etag=id16,
    stored=u64,
    manifest=st.integers(1, 2**64 - 1),
    data=st.data(),
)
def test_records_of_extents_round_trip(
    size: int,
    mtime_ns: int,
    mode: int,
    etag: bytes,
    stored: int,
    manifest: int,
    data: st.DataObject,
) -> None:
    chunks = data.draw(st.integers(1, min(size, 2**60)))
    record = rows.Record(size, mtime_ns, mode, etag, stored, chunks, manifest)
    assert rows.decode_record(rows.encode_record(record)) == record
    assert not record.is_inline


@given(st.binary(max_size=5000), u32, id16)
def test_inline_records_round_trip(inline: bytes, mode: int, etag: bytes) -> None:
    record = rows.Record(len(inline), 1, mode, etag, len(inline), inline=inline)
    assert rows.decode_record(rows.encode_record(record)) == record
    assert record.is_inline


@settings(max_examples=50, deadline=None)
@given(
    begin=st.integers(0, 2**62),
    lengths=st.lists(
        st.integers(1, CHUNK_BYTES_LIMIT + 256), min_size=1, max_size=SEGMENT_EXTENTS_MAX
    ),
    packs=st.integers(1, 5),
    bases=st.integers(0, 6),
    at=st.floats(0, 1),
)
def test_segments_round_trip_and_find_their_extents(
    begin: int, lengths: list[int], packs: int, bases: int, at: float
) -> None:
    others = [
        StoredChunk(bytes([i]) * 16, 1 + i, Location(bytes([i % 2]) * 16, 9 * i, 8 * i))
        for i in range(bases)
    ]
    made = []
    for i, length in enumerate(lengths):
        pack_id = bytes([i % packs]) * 16
        first = i % (bases + 1)
        used = tuple(others[first : first + BASES_MAX])
        location = Location(pack_id, (i * 77777) % 2**31, 32 + length % 1000, used)
        made.append(Extent(begin, begin + length, struct.pack("<QQ", i, length), location))
        begin += length
    decoded = layouts.decode_segment(segment(made))
    assert list(decoded) == made
    needed = {base for extent in made for base in extent.location.bases}
    assert set(decoded.frames()) == {extent.stored for extent in made} | needed
    marked = {(p, offset) for p, offsets in decoded.offsets_by_pack() for offset in offsets}
    assert marked == {chunk.location.place for chunk in decoded.frames()}
    assert (decoded.begin, decoded.end, len(decoded)) == (made[0].begin, begin, len(made))
    low = made[0].begin + int(at * (begin - made[0].begin - 1))
    for high in (low + 1, low + 5000, begin, begin + 1):
        expected = [e for e in made if e.begin < high and e.end > low]
        assert list(decoded.covering(low, high)) == expected
    assert list(decoded.covering(begin, begin + 10)) == []


def test_a_segment_holds_1024_extents() -> None:
    builder = layouts.SegmentBuilder(0)
    for i in range(SEGMENT_EXTENTS_MAX):
        assert not builder.full
        builder.append(i + 1, bytes(16), Location(bytes(16), 64, 33))
    assert builder.full
    assert len(layouts.decode_segment(builder.encode())) == SEGMENT_EXTENTS_MAX
    builder.append(9999, bytes(16), Location(bytes(16), 64, 33))
    with pytest.raises(FormatError, match="claims 1025 extents"):
        layouts.decode_segment(builder.encode())


def test_segment_keys_sort_as_numbers() -> None:
    keys = [rows.segment_key(m, e) for m in (0, 1, 255, 256, 2**63) for e in (0, 255, 256, 2**40)]
    assert keys == sorted(keys)


@given(
    st.lists(
        st.tuples(id16, st.integers(1, 5000), st.lists(id16, max_size=BASES_MAX)),
        max_size=60,
    )
)
def test_footers_round_trip(frames: list[tuple[bytes, int, list[bytes]]]) -> None:
    entries, at = [], 64
    for chunk_id, stored, bases in frames:
        entries.append(PackEntry(chunk_id, at, stored, 2 * stored, tuple(bases)))
        at += stored
    footer = encode_footer(entries, at)
    assert decode_footer(footer, at + len(footer)) == entries
    with pytest.raises(FormatError):
        decode_footer(footer, at + len(footer) + 1)


# ---------------------------------------------------------------- refusals, one by one


def test_newer_versions_are_said_to_be_newer() -> None:
    newer = SPECIMENS["config"].replace(b'"version": 1', b'"version": 3')
    with pytest.raises(UnsupportedFormat, match="format version 3, this castore reads up to 2"):
        decode_config(newer)
    with pytest.raises(UnsupportedFormat, match="version 9: upgrade castore"):
        rows.decode_record(repaired_record(b"\x09" + SPECIMENS["record, extents"][1:]))
    header = SPECIMENS["pack header"]
    with pytest.raises(UnsupportedFormat, match="format version 3"):
        decode_pack_header(repaired_pack_header(header[:8] + b"\x03" + header[9:]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"castore"', b'"desync"'),
        (b'"castore"', b"null"),
        (b'"version": 1', b'"version": 0'),
        (b'"version": 1', b'"version": -5'),
        (b'"version": 1', b'"version": "1"'),
        (b'"version": 1', b'"version": 1.5'),
        (b'"version": 1', b'"version": null'),
        (b'"version": 1', b'"version": 2'),
        (b'"version": 1,', b""),
        (b'"store_id": "00', b'"store_id": "'),
        (b'"store_id": "00', b'"store_id": "zz'),
        (b'"seed": "0123', b'"seed": "10123'),
        (b'"seed": "0123', b'"seed": "-123'),
        (b'"seed": "0123456789abcdef"', b'"seed": 12'),
        (b"16384", b"0"),
        (b"16384", b"-16384"),
        (b"16384", b"65537"),
        (b"16384", b"true"),
        (b"16384", b"16384.0"),
        (b"262144", b"%d" % (CHUNK_BYTES_LIMIT + 1)),
        (b"262144", b"1e400"),
        (b"262144", b"9" * 5000),
        (b'"collision_guard": null', b'"collision_guard": "md5"'),
        (b'"collision_guard": null', b'"collision_guard": []'),
        (b"}", b""),
        (b"{\n", b"[\n"),
        (b"{", b"[" * 60000),
        (b"format", b"\xff\xfe"),
        (b"\n", b" " * 70000),
    ],
)
def test_a_config_out_of_range_is_refused(old: bytes, new: bytes) -> None:
    raw = SPECIMENS["config"].replace(old, new, 1)
    assert raw != SPECIMENS["config"]
    with pytest.raises(FormatError):
        decode_config(raw)


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b'"x"', b"{}", b"7", b"\0" * 100, b"\xff"])
def test_a_file_that_is_no_config_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_config(raw)


def test_frame_headers_out_of_range_are_refused() -> None:
    def header(**fields: int) -> bytes:
        made = {"codec": 1, "flags": 0, "zero": 0, "raw": 100, "payload": 50} | fields
        return struct.pack("<4sBBHII16s", b"CFRM", *made.values(), bytes(16))

    assert decode_frame_header(header()).raw_bytes == 100
    limit = CHUNK_BYTES_LIMIT + 256
    assert decode_frame_header(header(raw=limit)).raw_bytes == limit
    for fields in [
        {"codec": 2},
        {"codec": 255},
        {"flags": 4},
        {"zero": 1},
        {"raw": 0},
        {"raw": limit + 1},
        {"raw": 2**32 - 1},
        {"payload": 101},
        {"codec": 0},
        {"flags": FLAG_ID_OF_SHA256},
        {"flags": FLAG_SHA256},  # and no room for it
    ]:
        with pytest.raises(FormatError):
            decode_frame_header(header(**fields))
    with pytest.raises(FormatError, match="magic"):
        decode_frame_header(b"X" + header()[1:])


def test_a_footer_that_places_frames_outside_its_pack_is_refused() -> None:
    for entry in [
        PackEntry(bytes(16), 63, 100, 100),
        PackEntry(bytes(16), FOOTER_OFFSET, 1, 100),
        PackEntry(bytes(16), 64, FOOTER_OFFSET, 100),
        PackEntry(bytes(16), 2**32 - 1, 2**32 - 1, 100),
    ]:
        with pytest.raises(FormatError, match="places a frame"):
            encode_footer([entry], FOOTER_OFFSET)
    footer = SPECIMENS["pack footer"]
    counted = footer[:-32] + (2**32 - 1).to_bytes(4, "little") + footer[-28:]
    with pytest.raises(FormatError, match="claims 4294967295 frames"):
        decode_footer(repaired_footer(counted), FOOTER_OFFSET + len(footer))
    for part in (footer[28:], footer[5:], bytes(28) + footer, b"x" + footer):
        with pytest.raises(FormatError, match="bytes for 4 frames"):
            decode_footer(repaired_footer(part), FOOTER_OFFSET + len(footer))


def test_a_segment_whose_columns_contradict_each_other_is_refused() -> None:
    good = SPECIMENS["segment"]

    def with_end(i: int, end: int) -> layouts.Segment:
        at = 32 + 8 * i
        return layouts.decode_segment(
            repaired_segment(good[:at] + end.to_bytes(8, "little") + good[at + 8 :])
        )

    for i, end in [
        (0, 1000),
        (0, 0),
        (2, 5),
        (4, 2**64 - 1),
        (1, 1001 + CHUNK_BYTES_LIMIT + 800),
    ]:
        damaged = with_end(i, end)
        with pytest.raises(FormatError, match="has an extent"):
            list(damaged)
    pack_at = 32 + 5 * (8 + 16 + 4 + 4)
    elsewhere = repaired_segment(good[:pack_at] + b"\x03\0" + good[pack_at + 2 :])
    with pytest.raises(FormatError, match="in pack 3"):
        layouts.decode_segment(elsewhere).extent(0)


# ---------------------------------------------------------------- mutations


EXTREMES += [1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def mutate(name: str, count: int) -> None:
    target = TARGETS[name]
    rng = random.Random(f"mutations of {name}")
    refused = 0
    allowed = (FormatError, UnsupportedFormat) if target.versioned else (FormatError,)
    for i in range(count):
        mutant = mutated(rng, target)
        try:
            target.decode(mutant)
        except allowed:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{name}, mutant {i}: {mutant[:400].hex()}") from error
    if name not in ("totals", "segment keys", "chunk rows"):
        assert refused > count // 3, "these mutations hardly do anything"


linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/statm")


@linux
@pytest.mark.parametrize("name", TARGETS)
def test_mutants_are_refused(name: str) -> None:
    with memory_limited(192 << 20):
        mutate(name, 1000)


@linux
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_20_000_mutants_are_refused(name: str) -> None:
    with memory_limited(192 << 20):
        mutate(name, 20_000)


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "frames"])
def test_decoders_take_no_memory_on_a_claim(name: str) -> None:
    """A few times what was given, at the most; a frame may claim a chunk's length."""
    target = TARGETS[name]
    rng = random.Random(f"memory of {name}")
    mutants = [mutated(rng, target) for _ in range(150)]
    tracemalloc.start()
    try:
        for mutant in mutants:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with suppress(FormatError, UnsupportedFormat):
                target.decode(mutant)
            assert tracemalloc.get_traced_memory()[1] - before < 40 * len(mutant) + 200_000
    finally:
        tracemalloc.stop()


def test_a_frame_takes_no_more_memory_than_a_chunk() -> None:
    raw = bomb(300 << 20)  # its header can't even say so
    lying = raw[:8] + (1000).to_bytes(4, "little") + raw[12:]
    tracemalloc.start()
    try:
        for frame in (raw, lying):
            with pytest.raises(FormatError):
                codec.decode_frame(frame, bytes(16), 1000, SEED)
            with pytest.raises(FormatError):
                use_frame(frame)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_segment_of_one_extent_is_as_its_builder_makes_it() -> None:
    """In both ways: by the short way in, and by that out, which knows of nothing else."""
    place = Location(bytes(range(16)), (1 << 32) - 1, 70_000)
    builder = layouts.SegmentBuilder(0)
    builder.append(65_000, b"\xfe" * 16, place)
    short = layouts.SegmentOfOne(65_000, b"\xfe" * 16, place)
    raw = builder.encode()
    assert short.encode() == raw
    assert (short.end, short.packs) == (builder.end, builder.packs)
    for owner in (0, 7, 1 << 31):
        segment = layouts.decode_segment(layouts.owned(raw, owner), manifest=owner)
        assert list(segment) == [Extent(0, 65_000, b"\xfe" * 16, place)]
        assert (segment.begin, segment.end, segment.owner) == (0, 65_000, owner)
        assert segment.covering(10, 20) == list(segment)
        assert segment.offsets_by_pack() == [(place.pack_id, (place.offset,))]
    with pytest.raises(FormatError, match="another manifest"):
        layouts.decode_segment(layouts.owned(raw, 7), manifest=8)
    seed = random.Random(1).getrandbits(64)
    etag = codec.ChunksEtag(seed)
    etag.update(bytes(range(16)))
    assert codec.etag_of_one(bytes(range(16)), seed) == etag.digest()
