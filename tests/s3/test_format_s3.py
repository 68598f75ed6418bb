"""The layouts of a store on S3: what is written is read back, and anything else is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import xxhash
from format_s3_cases import BATCHED, CONFIG, NONCE, STORE, inline, manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from castore.errors import FormatError, UnsupportedFormat
from castore.format.index import Record
from castore.format.pack import PackEntry
from castore.format.s3 import (
    MANIFEST_HEADER_BYTES,
    decode_manifest_head,
    encode_manifest,
    manifest_head_bytes,
    new_pack_id,
    new_session_id,
    session_of,
)
from castore.format.s3_gc import (
    GcState,
    decode_condemned,
    decode_pin,
    decode_state,
    encode_condemned,
    encode_pin,
    encode_state,
)
from castore.format.s3_told import decode_hints, encode_hints
from castore.s3.keys import name_key, pack_key, pin_key

ids = st.binary(min_size=16, max_size=16)
packs = st.lists(ids, max_size=20, unique=True)
entries = st.lists(
    st.builds(
        PackEntry,
        ids,
        *[st.integers(0, (1 << 32) - 1)] * 3,
        bases=st.lists(ids, max_size=4).map(tuple),
    ),
    max_size=10,
)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("segments", [1, 2, 50])
def test_manifests(segments: int) -> None:
    raw, record, pack_ids, encoded = manifest(segments)
    size = manifest_head_bytes(raw[:MANIFEST_HEADER_BYTES])
    head = decode_manifest_head(raw[:size])  # what follows it is not needed
    assert head == decode_manifest_head(raw)
    assert (head.store_id, head.nonce, head.record, head.packs) == (STORE, NONCE, record, pack_ids)
    assert [place.end for place in head.segments] == [end for end, _ in encoded]
    for place, (_, segment) in zip(head.segments, encoded, strict=True):
        assert raw[place.offset : place.offset + place.length] == segment
    assert head.segments[-1].offset + head.segments[-1].length == len(raw)
    assert head.config == CONFIG


def test_manifests_of_the_first_version_tell_of_no_config() -> None:
    """As castore wrote them until then: without the 24 bytes of it."""
    raw, record = inline(b"data")
    fixed = raw[:4] + b"\x01" + raw[5:52]
    body = raw[60 + 24 :]
    checksum = xxhash.xxh3_64_intdigest(body, xxhash.xxh3_64_intdigest(fixed))
    old = fixed + checksum.to_bytes(8, "little") + body
    head = decode_manifest_head(old)
    assert (head.store_id, head.record, head.config) == (STORE, record, None)
    with pytest.raises(UnsupportedFormat, match="version 4: upgrade castore"):
        decode_manifest_head(raw[:4] + b"\x04" + raw[5:])


def test_a_manifest_with_an_impossible_config() -> None:
    _, record = inline(b"data")
    wrong = CONFIG._replace(chunk_bytes_max=1 << 30)
    with pytest.raises(FormatError, match="chunk sizes out of range"):
        decode_manifest_head(encode_manifest(wrong, NONCE, record, [], []))


@given(st.binary(max_size=300))
def test_inline_manifests(data: bytes) -> None:
    raw, record = inline(data)
    head = decode_manifest_head(raw)
    assert (head.record, head.packs, head.segments) == (record, [], [])


def test_a_large_inline_object_is_not_in_the_head() -> None:
    data = random.Random(1).randbytes(5000)
    raw, record = inline(data)
    size = manifest_head_bytes(raw[:MANIFEST_HEADER_BYTES], whole=False)
    assert size < 300
    assert manifest_head_bytes(raw[:MANIFEST_HEADER_BYTES]) == len(raw)
    whole = decode_manifest_head(raw)
    assert whole.is_whole
    assert whole.record == record
    for read in (size, size + 1000, len(raw) - 1):
        head = decode_manifest_head(raw[:read])
        assert not head.is_whole
        assert head.record == record._replace(inline=b"")
        assert (head.config, head.nonce, head.packs) == (CONFIG, NONCE, [])
    told = record._replace(source=1 << 63)
    raw = encode_manifest(CONFIG, NONCE, told, [], [])
    assert decode_manifest_head(raw[:size]).record == told._replace(inline=b"")
    assert decode_manifest_head(raw).record == told


@given(st.integers(0, 5200), st.integers(1, 255))
def test_every_damage_of_a_large_inline_object_is_noticed(at: int, flip: int) -> None:
    raw = bytearray(inline(random.Random(1).randbytes(5000))[0])
    raw[at % len(raw)] ^= flip
    with pytest.raises((FormatError, UnsupportedFormat)):
        decode_manifest_head(bytes(raw))


@given(packs)
def test_lists_of_packs(found: list[bytes]) -> None:
    session = new_session_id()
    assert decode_pin(encode_pin(STORE, session, NONCE, found)) == (STORE, session, found)
    assert decode_condemned(encode_condemned(STORE, NONCE, found), STORE) == (found, [])
    carrying = encode_condemned(STORE, NONCE, found, found[-1:])
    condemned = decode_condemned(carrying, STORE)
    assert (sorted(condemned.packs), condemned.carried) == (sorted(found), found[-1:])
    with pytest.raises(FormatError):  # one is not the other
        decode_pin(encode_condemned(STORE, NONCE, found))
    with pytest.raises(FormatError):
        decode_condemned(encode_pin(STORE, session, NONCE, found), STORE)
    with pytest.raises(FormatError, match="another store"):
        decode_condemned(carrying, STORE[::-1])


@given(st.lists(st.tuples(ids, entries), max_size=5))
def test_hints(found: list[tuple[bytes, list[PackEntry]]]) -> None:
    assert decode_hints(encode_hints(STORE, found)) == (STORE, found)


@pytest.mark.parametrize(
    "state",
    [
        GcState(1, "idle", NONCE),
        GcState(7, "condemned", NONCE, "gc/condemned/7"),
        GcState(8, "sweeping", NONCE, "gc/condemned/7"),
    ],
)
def test_states(state: GcState) -> None:
    assert decode_state(encode_state(state)) == state


def test_keys() -> None:
    session = new_session_id()
    pack_id = new_pack_id(session)
    assert session_of(pack_id) == session
    assert pack_id != new_pack_id(session)
    assert pack_key(pack_id) == f"packs/{pack_id.hex()}-{session.hex()}"
    assert pin_key(session, 12) == f"pins/{session.hex()}/12"
    assert name_key("é/x".encode()) == "names/é/x"


# ---------------------------------------------------------------- what is refused


def all_decoders() -> list[tuple[Callable[[bytes], Any], bytes]]:
    return [
        (decode_manifest_head, manifest(2)[0]),
        (decode_manifest_head, inline(b"some bytes")[0]),
        (decode_pin, encode_pin(STORE, bytes(8), NONCE, [bytes(16), bytes(range(16))])),
        (
            lambda raw: decode_condemned(raw, STORE),
            encode_condemned(STORE, NONCE, [bytes(16)]),
        ),
        (decode_hints, encode_hints(STORE, [(bytes(16), [PackEntry(STORE, 1, 2, 3)] * 3)])),
        (decode_manifest_head, manifest(2, config=BATCHED, number=7)[0]),
        (decode_manifest_head, inline(b"some bytes", BATCHED, 7)[0]),
    ]


@pytest.mark.parametrize("which", range(7))
def test_every_changed_byte_is_noticed(which: int) -> None:
    decode, raw = all_decoders()[which]
    size = manifest_head_bytes(raw) if decode is decode_manifest_head else len(raw)
    for at in range(size):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(raw)
            changed[at] ^= flip
            with pytest.raises((FormatError, UnsupportedFormat)):
                decode(bytes(changed))


@pytest.mark.parametrize("which", range(7))
def test_every_cut_is_noticed(which: int) -> None:
    decode, raw = all_decoders()[which]
    size = manifest_head_bytes(raw) if decode is decode_manifest_head else len(raw)
    for length in range(size):
        with pytest.raises(FormatError):
            decode(raw[:length])
    if decode is not decode_manifest_head:
        with pytest.raises(FormatError):
            decode(raw + b"\0")


@pytest.mark.parametrize("which", range(7))
def test_a_newer_version_says_so(which: int) -> None:
    decode, raw = all_decoders()[which]
    with pytest.raises(UnsupportedFormat, match="upgrade castore"):
        decode(raw[:4] + b"\x04" + raw[5:])


@settings(max_examples=300)
@given(st.integers(0, 6), st.data())
def test_damage_of_any_kind_is_a_format_error(which: int, data: st.DataObject) -> None:
    decode, raw = all_decoders()[which]
    at = data.draw(st.integers(0, len(raw)))
    cut = data.draw(st.integers(0, 40))
    damaged = raw[:at] + data.draw(st.binary(max_size=40)) + raw[at + cut :]
    try:
        decode(damaged)
    except (FormatError, UnsupportedFormat):
        return
    if decode is decode_manifest_head:  # its segments are checked by themselves
        size = manifest_head_bytes(raw)
        assert damaged[:size] == raw[:size]
    else:
        assert damaged == raw


@given(st.binary(max_size=200))
def test_noise_is_a_format_error(raw: bytes) -> None:
    for decode, _ in all_decoders():
        with pytest.raises(FormatError):
            decode(raw)
    with pytest.raises(FormatError):
        decode_state(raw)


def test_claims_cost_no_memory() -> None:
    """Counts of billions are refused by the bytes that are there."""
    for decode, raw in all_decoders():
        for at in range(8, 20, 4):
            claimed = raw[:at] + b"\xff\xff\xff\xff" + raw[at + 4 :]
            with pytest.raises(FormatError):
                decode(claimed)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"phase": "resting"},
        {"phase": None},
        {"version": "1"},
        {"nonce": "xyz"},
        {"nonce": 5},
        {"condemned": 5},
        {"condemned": None},
        {"phase": "idle"},
    ],
)
def test_states_that_make_no_sense(change: dict[str, Any]) -> None:
    good = json.loads(encode_state(GcState(7, "condemned", NONCE, "gc/condemned/7")))
    del good["checksum"]
    assert decode_state(sealed(good)).version == 7
    with pytest.raises(FormatError):
        decode_state(sealed({**good, **change}))
    for key in good:
        with pytest.raises(FormatError):
            decode_state(sealed({k: v for k, v in good.items() if k != key}))
    good = json.loads(sealed(good))
    for key in good:
        with pytest.raises(FormatError):
            decode_state(json.dumps({k: v for k, v in good.items() if k != key}).encode())
    for raw in (b"[" * 3000, b"null", b"[1]", b"{" + b" " * 5000 + b"}"):
        with pytest.raises(FormatError):
            decode_state(raw)


def sealed(fields: dict[str, Any]) -> bytes:
    """With a checksum that is right."""
    checksum = xxhash.xxh3_64_hexdigest(json.dumps(fields).encode())
    return json.dumps({**fields, "checksum": checksum}).encode()


def test_every_flipped_bit_of_a_state() -> None:
    raw = encode_state(GcState(12, "condemned", NONCE, "gc/condemned/11"))
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(FormatError):
            decode_state(bytes(changed))


@pytest.mark.parametrize("version", [-1, 1 << 63, 1 << 70, True, "1", None, 1.0])
def test_versions_that_no_state_has(version: Any) -> None:
    with pytest.raises(FormatError):
        decode_state(encode_state(GcState(version, "idle", NONCE)))


@pytest.mark.parametrize("ends", [[1 << 62], [(1 << 64) - 1], [1000, 500], [1000, 1000]])
def test_segments_of_more_than_chunks_hold(ends: list[int]) -> None:
    """Who would put zeros in place of such an object's bytes would not come to an end."""
    segments = [(end, b"not looked at") for end in ends]
    record = Record(ends[-1], 5, 0o644, bytes(16), 900, manifest=1, chunks=1)
    with pytest.raises(FormatError, match=r"segment ends at byte"):
        decode_manifest_head(encode_manifest(CONFIG, NONCE, record, [bytes(16)], segments))


def test_segments_that_are_not_one_behind_the_other() -> None:
    _, record, pack_ids, encoded = manifest(2)
    with pytest.raises(FormatError, match="segments for"):  # the last ends elsewhere
        decode_manifest_head(encode_manifest(CONFIG, NONCE, record, pack_ids, encoded[:1]))
    with pytest.raises(FormatError):  # none at all
        decode_manifest_head(encode_manifest(CONFIG, NONCE, record, pack_ids, []))
    with pytest.raises(FormatError):  # inline, and segments
        decode_manifest_head(encode_manifest(CONFIG, NONCE, inline(b"x")[1], pack_ids, encoded))
