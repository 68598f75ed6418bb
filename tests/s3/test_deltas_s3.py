"""Chunks on S3 that are stored as deltas of others: which bases are used, what is relied on, what
is asked for, and what keeps the bases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

import pytest
from gc_stores import DAY, World, collect, edited, noise
from memory_s3 import Actor, Step, Stored
from versions import written_by_turns

import castore
from castore.errors import CastoreError
from castore.format.index import ChunkRow, decode_chunk_row
from castore.format.segment import Segment, decode_segment
from castore.model import Extent, StoredChunk
from castore.s3 import session as s3_session
from castore.s3 import untold, uploads
from castore.s3.damaged import mark_damaged
from castore.s3.keys import pack_key
from castore.s3.session import S3Session
from castore.stream import session
from castore.stream.lookalikes import LookAlikes

SIZE = 200_000
V1 = noise(SIZE, 1)
V2 = edited(V1, 1)
V3 = edited(V2, 2)
DENSE = edited(V1, 1, every=500)  # of which no chunk is the same


@pytest.fixture(autouse=True)
def _each_process_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the packs that it stored, at its end, so that other machines have their bases."""
    monkeypatch.setattr(untold, "UNTOLD_FRAMES_MAX", 0)


def packs_of(store: castore.Store, name: str) -> set[bytes]:
    return set(store._catalog.current(name.encode()).head.packs)  # type: ignore[attr-defined]


def deltas_of(store: castore.Store, name: str) -> int:
    record = store._catalog.record(name.encode())
    assert record is not None
    return record.deltas


def extents_of(store: castore.Store, name: str) -> list[Extent]:
    return store._catalog.cover(name.encode(), [None]).parts[0][2]


def asked(steps: Sequence[Step]) -> list[str]:
    """As `GET names`: in their order, repeated ones of a row once, with how many there were."""
    rows: list[tuple[str, int]] = []
    for step in steps:
        what = f"{step.kind} {step.key.split('/')[0]}"
        if rows and rows[-1][0] == what:
            rows[-1] = what, rows[-1][1] + 1
        else:
            rows.append((what, 1))
    return [what if count == 1 else f"{what} x{count}" for what, count in rows]


def two_versions(world: World) -> castore.Store:
    """Of one machine; the packs of each are of a session of its own."""
    with world.open("one") as store:
        store.puts("v1", V1)
    store = world.open("one")
    store.puts("v2", V2)
    return store


# ---------------------------------------------------------------- which bases


@pytest.mark.plain("it counts on which chunks are deltas")
def test_a_next_version_is_deltas_of_what_this_machine_stored(world: World) -> None:
    store = two_versions(world)
    assert deltas_of(store, "v2") > 40
    assert store.info("v2").stored_bytes < SIZE / 8
    assert len(packs_of(store, "v1")) == 1
    assert packs_of(store, "v1") < packs_of(store, "v2")
    stats = store.stats()
    assert stats.deltas == deltas_of(store, "v2") <= stats.delta_bases
    store.close()
    other = world.open("another")
    assert other.gets("v2") == V2
    assert other.gets("v2", (SIZE - 100, SIZE)) == V2[-100:]
    assert other.check(True).problems == []
    other.puts("v3", V3)  # of what it has read
    assert other.info("v3").stored_bytes < SIZE / 8
    assert world.open("yet another").gets("v3") == V3


@pytest.mark.plain("it counts on which chunks are deltas")
def test_what_is_not_on_this_machine_is_no_base(make_world: Callable[[], World]) -> None:
    """And nothing is asked for, to find that out."""
    steps = []
    for delta in (False, True):
        world = make_world()
        two_versions(world).close()
        actor = Actor("cold")
        store = world.open("cold", actor, delta=delta)
        store.info("v2")  # its manifest is here, and none of its frames
        begin = len(actor.steps)
        store.puts("v3", V3, like="v2")
        steps.append(Counter((step.kind, step.key.split("/")[0]) for step in actor.steps[begin:]))
        assert deltas_of(store, "v3") == 0
        assert store.gets("v3") == V3
        store.close()
    assert steps[0] == steps[1]


def alike_within() -> bytes:
    """A first version whose second half is touched everywhere, and resembles the first."""
    text = noise(SIZE // 2, 5).hex().encode()
    return text + edited(text, 1, every=600)


@pytest.mark.plain("it counts requests, and which chunks are deltas")
@pytest.mark.parametrize("own", [True, False], ids=["guard", "no guard"])
def test_what_a_put_has_stored_itself_needs_no_request_to_be_relied_on(
    make_world: Callable[[], World], monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """Its pack may not even be uploaded. Other machines read it, and collect, as they do the
    rest."""
    if not own:
        monkeypatch.setattr(LookAlikes, "is_own", lambda *_: False)
    steps = []
    for delta in (False, True):
        world = make_world()
        actor = Actor("one")
        store = world.open("one", actor, delta=delta)
        begin = len(actor.steps)
        store.puts("x", alike_within())
        steps.append(asked(actor.steps[begin:]))
    assert (deltas_of(store, "x") > 10) == own
    assert (steps[0] == steps[1]) == own
    store.close()
    other = world.open("another")
    collect(other)
    assert other.gets("x") == alike_within()
    assert other.check(True).problems == []


@pytest.mark.plain("it counts on which chunks are deltas")
def test_an_older_object_is_found_without_a_request(world: World) -> None:
    with world.open("one") as store:
        with store.transaction() as transaction:
            for name in ("a/1/data", "a/1/other", "b/x", "b/y", "old"):
                transaction.puts(name, noise(SIZE, sum(name.encode())))
            transaction.puts("b/z", b"inline")
        chunks = {name: extents_of(store, name)[0].chunk_id for name in ("a/1/data", "b/x", "b/y")}
        chunks["old"] = extents_of(store, "old")[0].chunk_id
        names = {chunk_id: name for name, chunk_id in chunks.items()}
    actor = Actor("one")
    store = world.open("one", actor)
    begin = len(actor.steps)

    def older(name: bytes, like: bytes | None = None) -> str:
        found = store._catalog.older(name, like)
        return "" if found is None else names[found.covering(0, 1)[0].chunk_id]

    for _ in range(2):  # from the cache, and from memory
        assert older(b"b/x") == "b/x"
        assert older(b"a/2/data") == "a/1/data"  # the folder before
        assert older(b"a/2/new") == ""
        assert older(b"b/y2") == "b/y"  # its neighbour
        assert older(b"b/zz") == ""  # whose neighbour has no chunks
        assert older(b"old2") == older(b"ol") == "old"
        assert older(b"else.x") == ""
        assert older(b"else.x", b"b/y") == "b/y"
    assert actor.steps[begin:] == []


@pytest.mark.plain("it counts on which chunks are deltas")
def test_without_a_disk_cache_only_what_is_in_memory_serves(world: World) -> None:
    text = noise(SIZE // 2, 1).hex().encode()
    store = world.open("one", disk_cache_bytes=0)
    store.puts("v1", text)
    store.puts("v2", edited(text, 1))
    assert deltas_of(store, "v2") == 0
    assert store.gets("v2") == edited(text, 1)
    store.puts("v3", edited(text, 2))
    assert deltas_of(store, "v3") > 40
    assert world.open("other").gets("v3") == edited(text, 2)


def test_delta_false_makes_none(world: World) -> None:
    with world.open("one", delta=False) as store:
        store.puts("v1", V1)
        assert list(world.cache_of("one").glob("**/frames/*")) == []
    store = world.open("one", delta=False)
    store.gets("v1")
    store.puts("v2", V2)
    assert deltas_of(store, "v2") == 0


# ---------------------------------------------------------------- what is relied on


@pytest.mark.parametrize("same", [0, 50_000])
def test_bases_are_relied_on_in_the_round_trips_of_a_look_up(
    world: World, monkeypatch: pytest.MonkeyPatch, same: int
) -> None:
    """The pin, the collector's plans, the HEADs: once, for all packs of chunks that both have, and
    of bases alike."""
    monkeypatch.setattr(uploads, "PACK_BYTES_FIRST", 50_000)
    monkeypatch.setattr(uploads, "PACK_BYTES_MAX", 50_000)
    with world.open("one") as store:
        store.puts("v1", V1)
    actor = Actor("one")
    store = world.open("one", actor)
    begin = len(actor.steps)
    store.puts("v2", V1[:same] + DENSE[same:])
    # What is marked as damaged is asked for beside the rest.
    steps = asked([s for s in actor.steps[begin:] if not s.key.startswith("damaged/")])
    assert deltas_of(store, "v2") > 30
    assert steps[:3] == ["LIST hints", "PUT pins", "GET gc"]
    assert steps[3].startswith("HEAD packs")
    assert [what.split(" x")[0] for what in steps[4:]] == ["PUT packs", "PUT names"]
    begin = len(actor.steps)
    store.puts("v3", edited(DENSE, 3))  # nothing more is to be relied on
    kinds = {what.split(" x")[0] for what in asked(actor.steps[begin:])}
    assert deltas_of(store, "v3") > 30
    assert kinds == {"HEAD damaged", "PUT packs", "PUT names"}


def test_each_look_ahead_relies_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PACK_BYTES_FIRST", 50_000)
    monkeypatch.setattr(uploads, "PACK_BYTES_MAX", 50_000)
    data = noise(1_000_000, 9)
    with world.open("one") as store:
        store.puts("data", data)
    monkeypatch.setattr(s3_session, "LOOKAHEAD_BYTES", 250_000)
    monkeypatch.setattr("castore.stream.writer.BATCH_BYTES", 50_000)
    monkeypatch.setattr("castore.stream.writer.CUT_BYTES", 25_000)
    actor = Actor("one")
    store = world.open("one", actor)
    store.puts("data", edited(data, 1))
    assert deltas_of(store, "data") > 200
    counts = Counter((step.kind, step.key.split("/")[0]) for step in actor.steps)
    assert counts["HEAD", "packs"] >= 20
    assert 1 < counts["PUT", "pins"] <= 3  # the first relies on what the second needs, too


@pytest.mark.parametrize("doomed", ["condemned", "gone", "damaged"])
def test_a_base_in_a_pack_that_is_doomed_is_none(world: World, doomed: str) -> None:
    with world.open("one") as store:
        store.puts("v1", V1)
        packs = packs_of(store, "v1")
    with world.open("other") as other:
        if doomed == "damaged":
            with world.bucket() as bucket:
                mark_damaged(bucket, packs)
        else:
            other.delete("v1")
            collect(other, grace_s=DAY if doomed == "condemned" else 0)
    assert len(world.server.keys("store/packs/")) == (doomed != "gone")
    actor = Actor("one")
    store = world.open("one", actor)
    store.puts("v2", V2)
    assert deltas_of(store, "v2") == 0
    assert packs_of(store, "v2").isdisjoint(packs)
    assert sum(step.kind == "PUT" and step.key.startswith("pins/") for step in actor.steps) <= 1
    world.pass_time(8 * DAY)
    collect(world.open("other"))
    assert store.gets("v2") == V2


@pytest.mark.parametrize("machine", ["one", "another"])
def test_bases_that_a_collector_moved_are_bases_still(world: World, machine: str) -> None:
    """On the machine that moved them; and elsewhere hints tell where they are, while their bytes
    are here."""
    with world.open("one") as store, store.transaction() as transaction:
        transaction.puts("garbage", noise(SIZE, 5))
        transaction.puts("v1", V1)
    with world.open(machine) as collector:
        before = packs_of(collector, "v1")
        collector.delete("garbage")
        assert collect(collector, repack_below=0.9).packs_rewritten == 1
    for name, data in (("v2", DENSE), ("v3", edited(DENSE, 3))):
        store = world.open("one")
        store.puts(name, data)
        assert deltas_of(store, name) > 40, name
        assert packs_of(store, name).isdisjoint(before)
        store.close()
        assert world.open(f"reads {name}").gets(name) == data


@pytest.mark.parametrize("verb", ["put", "copy", "append", "attributes"])
def test_who_reuses_a_delta_relies_on_its_bases(world: World, verb: str) -> None:
    """A pack with bases that nothing may rely on: what needs them is stored anew."""
    store = two_versions(world)
    bases = packs_of(store, "v1")
    store.delete("v1")
    store.close()
    with world.bucket() as bucket:
        mark_damaged(bucket, bases)
    other = world.open("other")
    match verb:
        case "put":
            other.puts("new", V2)
        case "copy":
            other.copy("v2", "new")
        case "append":
            other.copy("v2", "new")
            with other.open("new", "ab") as file:
                file.write(b"more")
        case "attributes":
            other.set_attributes("v2", mode=0o600)
            other.rename("v2", "new")
    assert packs_of(other, "new").isdisjoint(bases)
    if verb != "attributes":
        other.delete("v2")
    other.close()
    world.pass_time(8 * DAY)
    for _ in range(2):
        collect(last := world.open("last"))
    assert {pack_key(pack_id) for pack_id in bases}.isdisjoint(
        key.removeprefix("store/") for key in world.server.keys("store/packs/")
    )
    assert last.gets("new")[:SIZE] == V2


@pytest.mark.plain("it counts on which chunks are deltas")
def test_what_is_no_delta_does_not_become_one_by_another_file_of_the_transaction(
    world: World,
) -> None:
    store = world.open("one")
    expected = written_by_turns(store)
    assert deltas_of(store, "one") > 0
    assert {name: store.gets(name) for name in store.names()} == expected
    assert store.check(True).problems == []


@pytest.mark.plain("it counts on which chunks are deltas")
def test_a_copy_in_a_transaction_that_stored_its_chunks_plainly(world: World) -> None:
    """What stands for a frame is one of its kind: a delta is led to no plain frame's place."""
    store = two_versions(world)
    both = packs_of(store, "v2")
    store.close()
    with world.bucket() as bucket:
        mark_damaged(bucket, both)
    other = world.open("other")
    with other.transaction() as transaction:
        transaction.puts("plain", V2)
        transaction.copy("v2", "copied")
    assert deltas_of(other, "plain") == 0
    assert deltas_of(other, "copied") > 40
    assert packs_of(other, "copied").isdisjoint(both)
    third = world.open("third")
    assert third.gets("copied") == third.gets("plain") == V2


def test_others_learn_of_deltas_by_hints(world: World) -> None:
    two_versions(world).close()
    actor = Actor("other")
    other = world.open("other", actor)
    other.puts("again", V2)
    assert not [step for step in actor.steps if (step.kind, step.key[:5]) == ("PUT", "packs")]
    assert packs_of(other, "again") == packs_of(other, "v2")
    assert other.gets("again") == V2


# ---------------------------------------------------------------- what is read


def test_a_range_of_deltas_is_one_plan(world: World) -> None:
    """The frames and those that they decode with, all in one round trip."""
    two_versions(world).close()
    for machine in ("cold", "colder"):
        actor = Actor(machine)
        store = world.open(machine, actor, disk_cache_bytes=0, cache_bytes=0)
        store.info("v2")
        begin = len(actor.steps)
        assert store.gets("v2", (100_000, 100_010)) == V2[100_000:100_010]
        found = Counter(what.split("/")[0] for what in asked(actor.steps[begin:]))
        assert set(found) <= {"GET names", "GET packs", "GET packs x2"}
        keys = [step.key for step in actor.steps[begin:] if step.key.startswith("packs/")]
        assert len(keys) == len(set(keys)) <= 2


# ---------------------------------------------------------------- what keeps the bases


def test_bases_live_as_long_as_what_needs_them(world: World) -> None:
    store = two_versions(world)
    store.delete("v1")
    store.close()
    world.pass_time(8 * DAY)
    collector = world.open("collector")
    assert collect(collector).packs_removed == 0
    assert collector.gets("v2") == V2
    collector.delete("v2")
    assert collect(collector).packs_removed == 2


@pytest.mark.damages_store("bases are collected")
@pytest.mark.parametrize("guard", ["manifest", "pin"])
def test_each_guard_of_bases_is_needed(
    world: World, guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that does not tell of the bases' packs, and a put that does not pin them."""
    with world.open("one") as store:
        store.puts("v1", V1)
        bases = packs_of(store, "v1")
    other = world.open("other")
    if guard == "manifest":
        monkeypatch.setattr("castore.s3.names.decode_segment", _without(bases))
        store = world.open("one")
        store.puts("v2", V2)
        store.close()
        other.delete("v1")
        collect(other)
    else:

        def trusting(
            self: S3Session, chunks: Collection[StoredChunk]
        ) -> dict[StoredChunk, StoredChunk]:
            other.delete("v1")
            collect(other)
            return {chunk: chunk for chunk in chunks}

        monkeypatch.setattr(S3Session, "reliable", trusting)
        store = world.open("one")
        store.puts("v2", DENSE)
        store.close()
    with pytest.raises(CastoreError):
        world.open("reader").gets("v2")


def _without(bases: set[bytes]):  # type: ignore[no-untyped-def]
    def decoded(raw: bytes) -> Segment:
        segment = decode_segment(raw)
        segment.packs = [pack_id for pack_id in segment.packs if pack_id not in bases]
        return segment

    return decoded


def test_packs_with_bases_and_with_deltas_are_repacked(world: World) -> None:
    """All of them, as each has garbage."""
    versions = {"v1": V1, "v2": V2, "v3": V3}
    for i, (name, data) in enumerate(versions.items()):
        with world.open("one") as store, store.transaction() as transaction:
            transaction.puts("garbage", noise(SIZE, 10 + i), like="v2" if i == 2 else None)
            transaction.puts(name, data)
    store = world.open("one")
    store.delete("garbage")
    store.delete("v1")  # whose frames only deltas need
    del versions["v1"]
    assert min(deltas_of(store, name) for name in versions) > 40
    before = {name: (store.info(name), deltas_of(store, name)) for name in versions}
    packs = set(world.server.keys("store/packs/"))
    store.close()
    collector = world.open("collector")
    assert collect(collector, repack_below=0.9).packs_rewritten == 3
    assert packs.isdisjoint(world.server.keys("store/packs/"))
    other = world.open("other")
    assert {name: other.gets(name) for name in versions} == versions
    assert {name: (other.info(name), deltas_of(other, name)) for name in versions} == before
    assert collect(collector, repack_below=1.0).found_nothing
    collector.close()
    last = world.open("last")
    last.puts("again", V3)  # the hints lead there
    assert packs_of(last, "again") <= packs_of(last, "v3")


# ---------------------------------------------------------------- what is known, and damaged


def rows(store: castore.Store) -> dict[bytes, ChunkRow]:
    cache = store._backend._cache  # type: ignore[union-attr]

    def read(index, txn):  # type: ignore[no-untyped-def]
        with txn.cursor(db=index.chunks) as cursor:
            return {bytes(key): decode_chunk_row(bytes(row)[8:]) for key, row in cursor}

    found: dict[bytes, ChunkRow] = cache.read(read, {})
    return found


def test_a_rebuild_gives_the_same_rows(world: World) -> None:
    two_versions(world).close()
    with world.open("cold") as cold:
        cold.puts("v2 again", V2[:1000] + V2)  # all but the first chunks are known
    store = world.open("one")
    store.puts("new", noise(SIZE, 6))
    before = rows(store)
    assert sum(bool(row.bases) for row in before.values()) > 40
    for machine in (store, world.open("fresh")):
        assert machine.rebuild_index().lost == []
        assert rows(machine) == before


def test_a_delta_hides_no_plain_frame(world: World) -> None:
    """Rows lead to the plain frame of a chunk, whichever came first: deltas may have it as their
    base."""
    two_versions(world).close()
    with world.open("deaf", delta=False) as deaf:
        deaf._backend._hints._read = True  # type: ignore[union-attr]
        deaf.puts("plain", V2)
        plain = {extent.chunk_id for extent in extents_of(deaf, "plain")}
        deltas = {e.chunk_id for e in extents_of(deaf, "v2") if e.location.bases}
    assert len(plain & deltas) > 40
    for machine in ("one", "fresh"):  # which knows the deltas before; which hears of both at once
        store = world.open(machine)
        store.puts("new", noise(SIZE, 6))
        assert not any(rows(store)[chunk_id].bases for chunk_id in plain)
        assert store.rebuild_index().lost == []
        assert not any(rows(store)[chunk_id].bases for chunk_id in plain)


def flip(world: World, pack_id: bytes, offset: int) -> None:
    key = f"store/{pack_key(pack_id)}"
    stored = world.server.objects[key]
    raw = bytearray(stored.body)
    raw[offset] ^= 1
    world.server.objects[key] = Stored(bytes(raw), f"{stored.etag}flipped", stored.modified)


def base_in_use(store: castore.Store) -> StoredChunk:
    """A chunk that v1 has, and that v2 has only deltas of."""
    extents = extents_of(store, "v2")
    own = {extent.chunk_id for extent in extents}
    bases = [base for extent in extents for base in extent.location.bases]
    return next(base for base in bases if base.chunk_id not in own)


def test_a_flip_in_a_base_names_all_that_need_it_and_is_mended(world: World) -> None:
    store = two_versions(world)
    base = base_in_use(store)
    with world.open("cold") as cold:
        cold._backend._hints._read = True  # type: ignore[union-attr]
        cold.puts("another frame", V1)
        assert packs_of(cold, "another frame").isdisjoint(packs_of(cold, "v1"))
    store.close()
    flip(world, base.location.pack_id, base.location.offset + base.location.stored_bytes - 9)
    report = world.open("reader").check(True)
    assert set(report.damaged_names) == {"v1", "v2"}
    assert {problem.chunk for problem in report.problems} == {base.chunk_id.hex()}
    for name in ("v1", "v2"):
        with pytest.raises(castore.errors.ChunkCorrupt) as raised:
            world.open(f"reads {name}").gets(name)
        assert raised.value.chunk_id == base.chunk_id
    repaired = world.open("repairer").check(repair=True)
    assert repaired.damaged_names == []
    after = world.open("after")
    assert (after.gets("v1"), after.gets("v2")) == (V1, V2)
    assert base.location.pack_id not in packs_of(after, "v2")
    assert deltas_of(after, "v2") > 40
    world.pass_time(8 * DAY)
    collect(after)
    assert world.open("at last").gets("v2") == V2


def test_a_repair_leads_deltas_to_where_their_bases_are_stored_anew(world: World) -> None:
    """Also where nothing else needs these: what they are deltas of is deleted."""
    with world.open("one") as store, store.transaction() as transaction:
        transaction.puts("garbage", noise(SIZE, 5))
        transaction.puts("v1", V1)
    store = world.open("one")
    store.puts("v2", V2)
    store.puts("v3", V3)
    stored = {name: store.info(name).stored_bytes for name in ("v2", "v3")}
    garbage = extents_of(store, "garbage")[0].location
    store.delete("garbage")
    store.delete("v1")
    store.close()
    flip(world, garbage.pack_id, garbage.offset + garbage.stored_bytes - 9)
    assert world.open("repairer").check(repair=True).damaged_names == []
    after = world.open("after")
    assert (after.gets("v2"), after.gets("v3")) == (V2, V3)
    assert garbage.pack_id not in packs_of(after, "v2") | packs_of(after, "v3")
    assert {name: after.info(name).stored_bytes for name in stored} == stored


def test_what_can_not_be_mended_of_deltas_is_kept(world: World) -> None:
    store = two_versions(world)
    base = base_in_use(store)
    store.close()
    flip(world, base.location.pack_id, base.location.offset + base.location.stored_bytes - 9)
    report = world.open("repairer").check(repair=True)
    assert sorted(problem.names[0] for problem in report.problems) == ["v1", "v2"]
    after = world.open("after")
    names = [name for name in after.names("quarantine/") if not name.endswith(".json")]
    for name in names:
        version = V1 if name.endswith("v1") else V2
        kept = after.gets(name)
        different = sum(a != b for a, b in zip(kept, version, strict=True))
        assert 0 < different < SIZE / 10
    assert len(names) == 2


@pytest.mark.plain("it counts on which chunks are deltas")
@pytest.mark.damages_store("deltas are wrong")
def test_a_delta_that_makes_another_chunk_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By decoding it: its checksum is right. Bases are asked for together, and each once."""
    encode = session.encode_deltas
    with world.open("one") as store:
        store.puts("v1", V1)
        store.puts("v2", V2)
        with monkeypatch.context() as patched:
            patched.setattr(
                session,
                "encode_deltas",
                lambda chunks: encode(
                    [(raw[:-1] + bytes([raw[-1] ^ 1]), bases) for raw, bases in chunks]
                ),
            )
            store.puts("v3", V3)
        wrong = {e.chunk_id for e in extents_of(store, "v3") if e.location.bases}
        wrong -= {e.chunk_id for e in extents_of(store, "v2")}
    actor = Actor("reader")
    report = world.open("reader", actor).check(True)
    assert {problem.chunk for problem in report.problems} == {i.hex() for i in wrong} != set()
    assert set(report.damaged_names) == {"v3"}
    # Of each pack its size, its footer, its frames, its deltas, its bases: these once for each of
    # two packs that have deltas of them.
    gets = Counter(step.key for step in actor.steps if step.key.startswith("packs/"))
    assert max(gets.values()) <= 6
    repaired = world.open("repairer").check(repair=True)
    assert repaired.damaged_names == ["v3"]
    assert world.open("after").check(True).problems == []
