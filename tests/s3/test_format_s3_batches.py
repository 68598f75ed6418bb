"""The layouts of names in batches: what is written is read back, and anything else is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partialmethod
from typing import Any

import pytest
import xxhash
import zstandard
from format_cases import SPECIMENS, checksum, memory_limited
from format_cases import config as local_config
from format_s3_cases import (
    BATCH,
    BATCHED,
    CONFIG,
    DELETING,
    DELETING_BYTES,
    INDEX_BYTES,
    NONCE,
    RAW_ROOT,
    ROOT,
    STORE,
    TO_BATCH,
    TOMBSTONE,
    WEAK_TOMBSTONE,
    inline,
    manifest,
    repaired_batch,
    repaired_told,
    repaired_tombstone,
)
from hypothesis import given
from hypothesis import strategies as st

from castore.errors import FormatError, UnsupportedFormat
from castore.format.config import StoreConfig, decode_config, encode_config
from castore.format.index import Record
from castore.format.pack import decode_pack_config, decode_pack_header, encode_pack_header
from castore.format.s3 import (
    NUMBERED_BYTES,
    decode_manifest_head,
    encode_manifest,
    manifest_head_bytes,
    manifest_number,
    with_nonce,
)
from castore.format.s3_batches import (
    BATCH_BYTES_MAX,
    BATCH_HEADER_BYTES,
    BATCH_NAMES_MAX,
    INDEX_BYTES_LIMIT,
    BatchIndex,
    Drop,
    Root,
    RootEntry,
    ToBatch,
    decode_batch_head,
    decode_root,
    decode_tombstone,
    digest_of,
    encode_batch,
    encode_root,
    encode_tombstone,
    is_tombstone,
)
from castore.s3.batch_root import SeenRoot
from castore.s3.batches import Batches

u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
ids = st.binary(min_size=16, max_size=16)
names = st.text(st.sampled_from("ab/é"), min_size=1, max_size=6).map(str.encode)
VERSION = 1 << 40


@st.composite
def root_entries(draw: st.DrawFn) -> RootEntry:
    index_bytes = draw(st.integers(BATCH_HEADER_BYTES, 1 << 20))
    size = index_bytes + draw(st.integers(0, 1 << 30))
    number, count = draw(st.integers(0, VERSION)), draw(st.integers(1, BATCH_NAMES_MAX))
    first, last = sorted([draw(names), draw(names)])
    return RootEntry(draw(ids), number, size, draw(u64), draw(u64), index_bytes, count, first, last)


drops = st.builds(Drop, st.integers(0, VERSION), u64, st.binary(max_size=9))
roots = st.builds(
    Root,
    st.just(VERSION),
    ids,
    st.lists(drops, max_size=5).map(tuple),
    st.lists(root_entries(), max_size=5).map(tuple),
)
records = st.tuples(u64, st.integers(-(1 << 63), (1 << 63) - 1), u32, ids, u64).map(
    lambda shown: Record(*shown, chunks=0, manifest=1)
)


@st.composite
def batches(draw: st.DrawFn) -> list[ToBatch]:
    found = sorted(draw(st.sets(names, max_size=20)))
    return [ToBatch(name, draw(st.binary(max_size=30)), draw(records), draw(u64)) for name in found]


# ---------------------------------------------------------------- round trips


@given(roots)
def test_roots(root: Root) -> None:
    raw = encode_root(STORE, root)
    assert decode_root(raw) == (STORE, root)


@given(batches(), u64)
def test_batches(found: list[ToBatch], number: int) -> None:
    raw, index_bytes = encode_batch(STORE, found, number)
    head = decode_batch_head(raw[:index_bytes])  # what follows it is not needed
    rows = head.names.rows
    assert (head.store_id, head.number, head.bytes) == (STORE, number, index_bytes)
    assert [(row.name, row.record, row.number) for row in rows] == [
        (each.name, each.record, each.number) for each in found
    ]
    for row, each in zip(rows, found, strict=True):
        assert raw[row.offset : row.end] == each.manifest
        assert row.digest == digest_of(each.manifest)
    assert len(raw) == (rows[-1].end if rows else index_bytes)
    assert decode_batch_head(raw).names.rows == rows


@given(batches(), names, names)
def test_names_of_a_batch_are_found(found: list[ToBatch], prefix: bytes, after: bytes) -> None:
    rows = decode_batch_head(encode_batch(STORE, found, 1)[0]).names.rows
    index = BatchIndex(rows)
    for name in (prefix, after, *(row.name for row in rows)):
        assert index.find(name) == next((row for row in rows if row.name == name), None)
    for below, start_after in ((prefix, after), (b"", after), (prefix, b""), (b"", b"")):
        expected = [r for r in rows if r.name.startswith(below) and r.name > start_after]
        assert list(index.below(below, start_after)) == expected


@given(st.lists(root_entries(), max_size=9), names)
def test_entries_that_may_have_a_name_are_found(entries: list[RootEntry], name: bytes) -> None:
    root = Root(VERSION, NONCE, (), tuple(entries))
    for each in (name, *(e.first for e in entries), *(e.last for e in entries)):
        assert root.having(each) == [e for e in entries if e.first <= each <= e.last]
        for prefix in (each[:i] for i in range(len(each) + 1)):
            n = len(prefix)
            assert root.having_below(prefix) == [
                e for e in entries if e.first[:n] <= prefix <= e.last
            ]


def test_entries_that_were_replaced_are_not_found() -> None:
    root = Root(VERSION, NONCE, (Drop(1, 0, b"a"),), ROOT.entries)
    assert root.having(b"a/1") == [*ROOT.entries]
    assert root.dropped(b"a/1") == 1
    after = root._replace(drops=(), entries=ROOT.entries[:1])
    assert after.having(b"a/1") == [ROOT.entries[0]]
    assert after.dropped(b"a/1") == -1


class Counted(bytes):
    """A name that counts what it is asked for: comparisons and parts of it."""

    asked = 0

    def _counted(self, verb: str, *args: Any) -> Any:
        Counted.asked += 1
        return getattr(bytes, verb)(self, *args)

    __lt__ = partialmethod(_counted, "__lt__")  # type: ignore[assignment]
    __le__ = partialmethod(_counted, "__le__")  # type: ignore[assignment]
    __gt__ = partialmethod(_counted, "__gt__")  # type: ignore[assignment]
    __ge__ = partialmethod(_counted, "__ge__")  # type: ignore[assignment]
    __getitem__ = partialmethod(_counted, "__getitem__")  # type: ignore[assignment]
    startswith = partialmethod(_counted, "startswith")  # type: ignore[assignment]


@pytest.mark.parametrize("look", ["find", "covers", "retired_number", "known"])
def test_a_name_is_looked_for_in_few_of_many_entries(look: str) -> None:
    """Each batch has ten names, of which the next one has the last two, too."""
    ranges = [(b"%06d" % (8 * i), b"%06d" % (8 * i + 9)) for i in range(4000)]
    entries = [RootEntry(NONCE, i, 900, 0, i % 2, 300, 10, *each) for i, each in enumerate(ranges)]
    drops = [Drop(i, 0, b"%05d/" % i) for i in range(4000)]
    root = Root(4000, NONCE, tuple(drops), tuple(entries))
    batches = Batches(None, STORE, None)  # type: ignore[arg-type]  # none is asked
    batches._seen = SeenRoot(root, "etag")
    batches._keep_index(NONCE, BatchIndex([]))
    name = Counted(b"016000")
    asked = getattr(batches, look)
    asks = (lambda: asked(name)) if look == "known" else (lambda: asked(root, name))
    asks()  # sorts the entries, if nothing has
    Counted.asked = 0
    asks()
    assert 0 < Counted.asked < 200
    batches.close()


@given(st.lists(drops, max_size=5), names)
def test_the_highest_drop_of_a_name(found: list[Drop], name: bytes) -> None:
    numbers = [-1]
    numbers += [drop.number for drop in found if name[: len(drop.prefix)] == drop.prefix]
    assert Root(VERSION, NONCE, tuple(found)).dropped(name) == max(numbers)


@pytest.mark.parametrize("number", [None, 0, 1, (1 << 64) - 1])
def test_tombstones(number: int | None) -> None:
    raw = encode_tombstone(STORE, NONCE, number)
    assert decode_tombstone(raw) == (STORE, number)
    assert is_tombstone(len(raw))
    assert len(raw) % 2 == (number is not None)
    renewed = with_nonce(raw, STORE)
    assert renewed == encode_tombstone(STORE, STORE, number)


def test_layouts_are_those_of_the_format_page() -> None:
    """FORMAT.md read literally, with nothing of castore/format."""
    head = b"CTMB" + struct.pack("<BBH", 1, 0, 0) + STORE + NONCE + bytes(8)
    assert head + checksum(head) == TOMBSTONE
    head = b"CTMB" + struct.pack("<BBH", 1, 1, 0) + STORE + NONCE + struct.pack("<Q", 7)
    assert head + checksum(head) + b"\0" == WEAK_TOMBSTONE

    told = struct.pack("<Q", 9) + NONCE + struct.pack("<I", 2)
    for drop in ROOT.drops:
        told += struct.pack("<QQH", drop.number, drop.at, len(drop.prefix)) + drop.prefix
    for e in ROOT.entries:
        told += e.batch_id + struct.pack("<QQQQ", e.number, e.size, e.at, e.retired)
        told += struct.pack("<IIHH", e.index_bytes, e.names, len(e.first), len(e.last))
        told += e.first + e.last
    head = b"CROT" + struct.pack("<BBHI", 1, 0, 0, 2) + STORE
    assert head + checksum(told, xxhash.xxh3_64_intdigest(head)) + told == RAW_ROOT

    index = b""
    for name, raw, r, number in TO_BATCH:
        index += struct.pack("<HIQ", len(name), len(raw), number)
        index += xxhash.xxh3_128(raw).digest()
        index += struct.pack("<IQqQ", r.mode, r.size, r.mtime_ns, r.stored_bytes) + r.etag + name
    packed = BATCH[56:INDEX_BYTES]
    assert zstandard.decompress(packed) == index
    head = b"CBAT" + struct.pack("<BBHIIQQ", 1, 0, 0, 3, len(packed), len(index), 7) + STORE
    assert BATCH[:56] == head + checksum(packed, xxhash.xxh3_64_intdigest(head))
    assert BATCH[INDEX_BYTES:] == b"".join(each.manifest for each in TO_BATCH)

    index = b""
    for name, number in ((b"a/1", 0), (b"a/3", 6)):
        index += struct.pack("<HIQ", len(name), 0, number) + xxhash.xxh3_128(b"").digest()
        index += struct.pack("<IQqQ", 0, 0, 0, 0) + bytes(16) + name
    packed = DELETING[56:]
    assert zstandard.decompress(packed) == index
    head = b"CBAT" + struct.pack("<BBHIIQQ", 2, 0, 0, 2, len(packed), len(index), 8) + STORE
    assert DELETING[:56] == head + checksum(packed, xxhash.xxh3_64_intdigest(head))
    assert len(DELETING) == DELETING_BYTES


# ---------------------------------------------------------------- what is refused

DECODERS: list[tuple[Callable[[bytes], Any], bytes]] = [
    (decode_root, RAW_ROOT),
    (decode_batch_head, BATCH[:INDEX_BYTES]),
    (decode_batch_head, DELETING),
    (decode_tombstone, TOMBSTONE),
    (decode_tombstone, WEAK_TOMBSTONE),
]
each_decoder = pytest.mark.parametrize(
    ("decode", "raw"),
    DECODERS,
    ids=["root", "batch", "batch that deletes", "tombstone", "weak tombstone"],
)


@each_decoder
def test_every_changed_byte_is_noticed(decode: Callable[[bytes], Any], raw: bytes) -> None:
    for at in range(len(raw)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(raw)
            changed[at] ^= flip
            with pytest.raises((FormatError, UnsupportedFormat)):
                decode(bytes(changed))


@each_decoder
def test_every_cut_is_noticed(decode: Callable[[bytes], Any], raw: bytes) -> None:
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            decode(raw[:length])


@pytest.mark.parametrize("raw", [RAW_ROOT, repaired_told(RAW_ROOT + b"\0")])
def test_a_root_ends_where_it_says(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_root(raw + b"\0")


@pytest.mark.parametrize("raw", [TOMBSTONE + b"\0", WEAK_TOMBSTONE + b"\0", WEAK_TOMBSTONE[:-1]])
def test_a_tombstone_has_its_size(raw: bytes) -> None:
    """It is what a list tells weak ones by."""
    with pytest.raises(FormatError):
        decode_tombstone(raw)


@each_decoder
def test_a_newer_version_says_so(decode: Callable[[bytes], Any], raw: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match="version 9: upgrade castore"):
        decode(raw[:4] + b"\x09" + raw[5:])


@each_decoder
@given(noise=st.binary(max_size=200))
def test_noise_is_a_format_error(decode: Callable[[bytes], Any], raw: bytes, noise: bytes) -> None:
    for damaged in (noise, raw[:4] + noise, raw[:5] + noise):
        with pytest.raises(FormatError):
            decode(damaged)


@pytest.mark.parametrize("at", [4, 5, 6, 7])
def test_flags_that_nothing_has(at: int) -> None:
    """With checksums that are right, so that it is the flags that are refused."""
    for repaired, decode, raw in (
        (repaired_told, decode_root, RAW_ROOT),
        (repaired_batch, decode_batch_head, BATCH),
        (repaired_tombstone, decode_tombstone, TOMBSTONE),
        (repaired_tombstone, decode_tombstone, WEAK_TOMBSTONE),
    ):
        value = 0 if at == 4 else 4
        with pytest.raises(FormatError):
            decode(repaired(raw[:at] + bytes([value]) + raw[at + 1 :]))


def test_a_strong_tombstone_has_no_number() -> None:
    with pytest.raises(FormatError):
        decode_tombstone(repaired_tombstone(TOMBSTONE[:40] + b"\x01" + TOMBSTONE[41:]))


ENTRY = ROOT.entries[1]


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY._replace(number=10),
        ENTRY._replace(size=ENTRY.index_bytes - 1),
        ENTRY._replace(size=BATCH_BYTES_MAX + 1),
        ENTRY._replace(index_bytes=BATCH_HEADER_BYTES - 1),
        ENTRY._replace(names=0),
        ENTRY._replace(names=BATCH_NAMES_MAX + 1),
        ENTRY._replace(first=b"z", last=b"y"),
    ],
)
def test_entries_that_make_no_sense(entry: RootEntry) -> None:
    with pytest.raises(FormatError, match="batches/root"):
        decode_root(encode_root(STORE, ROOT._replace(entries=(entry,))))


def test_a_drop_by_a_later_root() -> None:
    with pytest.raises(FormatError, match="newer"):
        decode_root(encode_root(STORE, ROOT._replace(drops=(Drop(10, 0, b""),))))


@pytest.mark.parametrize(
    "found",
    [
        [*TO_BATCH[::-1]],
        [TO_BATCH[0], TO_BATCH[0]],
        [TO_BATCH[0]._replace(name=b"")],
        [TO_BATCH[0]._replace(name=b"n" * 481)],
        [TO_BATCH[0]._replace(name=b"\xff")],
    ],
    ids=["order", "twice", "empty", "long", "no text"],
)
def test_names_that_no_batch_has(found: list[ToBatch]) -> None:
    with pytest.raises(FormatError, match="name"):
        decode_batch_head(encode_batch(STORE, found, 1)[0])


# ---------------------------------------------------------------- claims

HUGE = b"\xff\xff\xff\xff"


@pytest.mark.parametrize("at", [8, 36 + 8 + 16, 36 + 28 + 16])  # entries, drops, a prefix
def test_a_root_that_claims_more_than_it_has(at: int) -> None:
    claimed = repaired_told(RAW_ROOT[:at] + HUGE + RAW_ROOT[at + 4 :])
    with memory_limited(64 << 20), pytest.raises(FormatError):
        decode_root(claimed)


@pytest.mark.parametrize("at", [8, 12, 16, 20])  # names, bytes packed, bytes unpacked
def test_a_batch_that_claims_more_than_it_has(at: int) -> None:
    claimed = repaired_batch(BATCH[:at] + HUGE + BATCH[at + 4 :])
    with memory_limited(64 << 20), pytest.raises(FormatError):
        decode_batch_head(claimed)


def with_index(packed: bytes, size: int) -> bytes:
    sizes = struct.pack("<IIQ", 3, len(packed), size)
    return repaired_batch(BATCH[:8] + sizes + BATCH[24:56] + packed)


@pytest.mark.parametrize("claimed", [100, 1 << 30, 1 << 40, (1 << 62) + 1])
def test_an_index_whose_frame_claims_more_than_its_batch(claimed: int) -> None:
    """Of what its own frame claims, zstandard allocates all, whatever is said to be the most."""
    frame = b"\x28\xb5\x2f\xfd\xc0\x00" + struct.pack("<Q", claimed) + b"\x01\x00\x00"
    assert zstandard.frame_content_size(frame) == claimed
    with memory_limited(64 << 20), pytest.raises(FormatError):
        decode_batch_head(with_index(frame, 99))


def test_an_index_that_is_too_large_whatever_it_takes() -> None:
    size = INDEX_BYTES_LIMIT + 1
    packed = zstandard.compress(bytes(size))
    with memory_limited(32 << 20), pytest.raises(FormatError, match="claims"):
        decode_batch_head(with_index(packed, size))


def test_an_index_that_is_no_frame_or_more_than_one() -> None:
    index = zstandard.decompress(BATCH[56:INDEX_BYTES])
    packed = zstandard.compress(index)
    assert decode_batch_head(with_index(packed, len(index))).names.rows
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(index)
    for wrong in (b"", index, unsized, packed + packed, packed + b"\0", packed[:-1]):
        with pytest.raises(FormatError):
            decode_batch_head(with_index(wrong, len(index)))


def test_a_batch_of_more_bytes_than_it_may_have() -> None:
    index = zstandard.decompress(BATCH[56:INDEX_BYTES])
    longer = index[:2] + struct.pack("<I", BATCH_BYTES_MAX) + index[6:]
    with pytest.raises(FormatError, match="bytes"):
        decode_batch_head(with_index(zstandard.compress(longer), len(longer)))


# ---------------------------------------------------------------- manifests that are weak

SIZES = (0, 1, 2, 999, 1000, 4007, 4008, 4009, 4010, 70_000, 70_001)  # some with bytes behind


def manifests(config: StoreConfig, number: int | None) -> list[bytes]:
    inlined = [inline(bytes(size), config, number)[0] for size in SIZES]
    return [*inlined, *(manifest(n, m, config, number)[0] for n in (1, 2, 50) for m in (1, 2, 3))]


@pytest.mark.parametrize("number", [0, 7, (1 << 64) - 1])
def test_a_list_tells_weak_manifests_by_their_sizes(number: int) -> None:
    for strong, weak in zip(manifests(BATCHED, None), manifests(BATCHED, number), strict=True):
        assert len(strong) % 2 == 0
        assert len(weak) % 2 == 1
        assert not is_tombstone(len(strong))
        assert not is_tombstone(len(weak))
        for raw, expected in ((strong, None), (weak, number)):
            head = decode_manifest_head(raw)
            assert head.config == BATCHED
            assert head.number == expected
            assert manifest_number(raw[:NUMBERED_BYTES]) == expected
        same = {"number": None, "config": None, "segments": None}
        strong_head, weak_head = decode_manifest_head(strong), decode_manifest_head(weak)
        assert facts(strong_head) | same == facts(weak_head) | same
        for place in weak_head.segments:
            assert place.offset + place.length <= len(weak)
    for raw in (TOMBSTONE, WEAK_TOMBSTONE, BATCH, b"", manifests(BATCHED, 7)[0][:67]):
        assert manifest_number(raw) is None


def test_where_the_bytes_of_weak_manifests_are() -> None:
    raw, record, _, encoded = manifest(2, 4, BATCHED, 7)
    head = decode_manifest_head(raw[: manifest_head_bytes(raw)])
    assert head.record == record
    for place, (end, segment) in zip(head.segments, encoded, strict=True):
        assert place.end == end
        assert raw[place.offset : place.offset + place.length] == segment
    for size in SIZES:
        raw, record = inline(bytes(size), BATCHED, 7)
        assert decode_manifest_head(raw).record == record


def test_manifests_of_a_store_without_batches_are_what_they_were() -> None:
    """Neither padded nor marked: castores before read them."""
    sizes = {len(raw) % 2 for raw in manifests(CONFIG, None)}
    assert sizes == {0, 1}
    raw, _ = inline(b"data")
    assert raw[:52] == b"CMAN" + struct.pack("<BBHIII", 2, 0, 0, 76, 0, 0) + STORE + NONCE
    assert raw[60:84] == struct.pack("<QIIII", 1 << 63, 704, 2816, 11_264, 1)
    assert len(raw) == 84 + 72 + len(b"data")


def test_weak_manifests_are_those_of_the_format_page() -> None:
    strong, weak = inline(b"data", BATCHED)[0], inline(b"data", BATCHED, 7)[0]
    assert strong[60:84] == struct.pack("<QIIII", 1 << 63, 704, 2816, 11_264, 1 + 2)
    assert strong[84:] == inline(b"data")[0][84:]
    head = b"CMAN" + struct.pack("<BBHIII", 2, 1, 0, 76, 0, 0) + STORE + NONCE
    body = struct.pack("<Q", 7) + strong[60:]
    assert weak == head + checksum(body, xxhash.xxh3_64_intdigest(head)) + body + b"\0"


@pytest.mark.parametrize("config", [CONFIG, BATCHED])
@pytest.mark.parametrize("number", [None, 7])
def test_another_nonce_changes_nothing_else(config: StoreConfig, number: int | None) -> None:
    nonce = bytes(range(100, 116))
    for raw in manifests(config, number):
        renewed = with_nonce(raw, nonce)
        assert facts(decode_manifest_head(renewed)) == {
            **facts(decode_manifest_head(raw)),
            "nonce": nonce,
        }
        assert renewed[:36] + renewed[60:] == raw[:36] + raw[60:]
        assert with_nonce(renewed, NONCE) == raw


@pytest.mark.parametrize("raw", [inline(b"data", BATCHED, 7)[0][:-1], TOMBSTONE, WEAK_TOMBSTONE])
def test_no_nonce_is_given_to_what_is_damaged(raw: bytes) -> None:
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        with pytest.raises((FormatError, UnsupportedFormat)):
            with_nonce(bytes(changed), STORE)


def test_no_nonce_is_given_to_what_has_damaged_segments() -> None:
    """Their checksums are their own."""
    for raw in manifests(BATCHED, None):
        for place in decode_manifest_head(raw).segments:
            for at in range(place.offset + 24, place.offset + place.length, 7):
                changed = bytearray(raw)
                changed[at] ^= 1
                with pytest.raises(FormatError):
                    with_nonce(bytes(changed), STORE)


def test_flags_that_no_manifest_has() -> None:
    _, record = inline(b"data")
    for at, value in ((5, 2), (5, 0xFF), (6, 1)):
        raw = bytearray(encode_manifest(BATCHED, NONCE, record, [], []))
        raw[at] = value
        with pytest.raises(FormatError, match="flags"):
            decode_manifest_head(bytes(raw))


# ---------------------------------------------------------------- stores with and without batches


def test_the_config_of_a_store_without_batches_is_what_it_was() -> None:
    assert encode_config(local_config("sha256")) == SPECIMENS["config with checksum"]
    assert b"batches" not in encode_config(local_config())
    assert not decode_config(SPECIMENS["config with checksum"]).batches


def test_the_config_of_a_store_with_batches() -> None:
    config = local_config("sha256")._replace(batches=True)
    raw = encode_config(config)
    before = SPECIMENS["config with checksum"]
    assert raw.replace(b'"version": 2', b'"version": 1').startswith(
        before[: before.index(b',\n  "checksum')]
    )
    assert decode_config(raw) == config
    for old, new in (
        (b'"version": 2', b'"version": 1'),
        (b'"batches": true', b'"batches": false'),
        (b'"batches": true', b'"batches": 1'),
        (b'"batches": true', b'"batches": null'),
        (b'"batches": true', b'"others": true'),
    ):
        for whole in (raw, encode_config(config, checksum=False)):
            assert old in whole
            with pytest.raises(FormatError):
                decode_config(whole.replace(old, new))


@pytest.mark.parametrize("guard", [None, "sha256"])
@pytest.mark.parametrize("batches", [False, True])
def test_packs_tell_whether_there_are_batches(guard: str | None, batches: bool) -> None:
    config = local_config(guard)._replace(batches=batches)
    raw = encode_pack_header(config.store_id, NONCE, config)
    assert raw[10] == bool(guard) + 2 * batches
    assert decode_pack_header(raw) == (config.store_id, NONCE)
    assert decode_pack_config(raw) == config
    raw = raw[:10] + b"\x04" + raw[11:56]
    with pytest.raises(FormatError, match="flags"):
        decode_pack_header(raw + checksum(raw))


def facts(head: Any) -> dict[str, Any]:
    return {each: getattr(head, each) for each in head.__slots__}
