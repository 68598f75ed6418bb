"""castore.json of a store on S3 is lost or damaged: only what it was is made in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from servers import Server
from stores import OTHER_BYTES

import castore
from castore.cli import exits, main
from castore.errors import ConfigLost, FormatError, NotAStore, StoreNotFound
from castore.format.config import decode_config, encode_config
from castore.format.s3_batches import is_tombstone
from castore.s3.client.bucket import Bucket
from castore.s3.creation import repair_config
from castore.s3.keys import CONFIG_KEY
from castore.s3.namespace import writing

pytestmark = pytest.mark.usefixtures("quick", "cache_dir")

INLINE, LARGE = b"inline" * 100, bytes(range(256)) * 1000


@pytest.fixture
def bucket(moto_server: Server) -> Any:
    with Bucket(moto_server.settings()) as bucket:
        yield bucket


def made(server: Server, **options: Any) -> bytes:
    """A store with an object of each kind; its castore.json."""
    with castore.open(server.url(), chunk_bytes_avg=2816, **options) as store:
        store.puts("inline", INLINE)
        store.puts("large", LARGE)
    with Bucket(server.settings()) as bucket:
        return bucket.get(CONFIG_KEY).body


def is_whole(server: Server) -> None:
    with castore.open(server.url(), create=False) as store:
        for name, value in (("inline", INLINE), ("large", LARGE)):
            if store.exists(name):
                assert store.gets(name) == value
        problems = store.check(read_data=True).problems
        assert [problem for problem in problems if problem.kind != "orphan"] == []
        before = store.stats().pack_bytes
        store.puts("again", LARGE)
        if store.exists("large"):
            assert store.stats().pack_bytes == before, "what is there is found again"
        store.delete("again")


VERBS: dict[str, Callable[[str], object]] = {
    "put": lambda url: castore.open(url).puts("new", b"x"),
    "read": lambda url: castore.open(url, create=False, read_only=True),
    "check": castore.check_store,
    "rebuild": castore.rebuild_index,
}


@pytest.mark.damages_store("castore.json is taken away")
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_makes_another_store_of_it(verb: str, moto_server: Server, bucket: Bucket) -> None:
    made(moto_server)
    bucket.delete(CONFIG_KEY)
    before = [entry.key for entry in bucket.list()]
    with pytest.raises(ConfigLost, match=r"check --repair"):
        VERBS[verb](moto_server.url())
    assert [entry.key for entry in bucket.list()] == before


@pytest.mark.damages_store("castore.json is taken away")
def test_of_a_store_that_has_batches_alone(
    moto_server: Server, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "BATCH_NAMES_MIN", 2)
    values = {f"n/{i}": b"%d" % i * 100 for i in range(6)}
    with castore.open(moto_server.url()) as store:
        store.puts_many(values)
        for entry in list(bucket.list("names/")):  # the last is put by itself
            name = entry.key.removeprefix("names/")
            store.delete(name)
            del values[name]
    assert values
    assert all(is_tombstone(entry.size) for entry in bucket.list("names/"))
    config = bucket.get(CONFIG_KEY).body
    bucket.delete(CONFIG_KEY)
    for verb in VERBS.values():
        with pytest.raises(ConfigLost, match=r"check --repair"):
            verb(moto_server.url())
    assert castore.check_store(moto_server.url(), repair=True).problems == []
    assert bucket.get(CONFIG_KEY).body == config
    with castore.open(moto_server.url(), create=False) as store:
        assert {name: store.gets(name) for name in store.names()} == values


@pytest.mark.damages_store("castore.json is taken away")
@pytest.mark.parametrize("guard", [None, "sha256"])
@pytest.mark.parametrize("left", ["all", "only names", "only inline", "only packs"])
@pytest.mark.sampled(5)
def test_it_is_made_again(
    left: str, guard: str | None, moto_server: Server, bucket: Bucket
) -> None:
    config = made(moto_server, collision_guard=guard)
    doomed = {"all": "no/", "only names": "packs/", "only inline": "names/large"}
    gone = doomed.get(left, "names/")
    bucket.delete_many([entry.key for entry in bucket.list(gone)])
    bucket.delete(CONFIG_KEY)
    with Bucket(moto_server.settings()) as another:
        assert "made again" in repair_config(another)
        assert bucket.get(CONFIG_KEY).body == config
        assert repair_config(another) == ""
    if left != "only names":
        is_whole(moto_server)


def test_by_the_command(
    moto_server: Server, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    config = made(moto_server)
    bucket.delete(CONFIG_KEY)
    url = moto_server.url()
    for verb in (["ls"], ["check"], ["check", "--repair"], ["put", __file__, "x"], ["gc"]):
        assert main(["-r", url, *verb]) == exits.CORRUPT
    assert main(["--json", "doctor", url]) == exits.FAILURE
    out, err = capsys.readouterr()
    assert "check --repair" in err
    [said] = [line for line in map(json.loads, out.splitlines()) if line["what"] == "store"]
    assert (said["verdict"], "castore.json" in said["found"]) == ("problem", True)
    assert main(["-r", url, "check", "--repair", "--yes"]) == exits.OK
    assert "done: castore.json was gone" in capsys.readouterr().err
    assert bucket.get(CONFIG_KEY).body == config
    is_whole(moto_server)


@pytest.mark.parametrize("how", ["cut short", "a digit of the seed", "empty", "another store's"])
@pytest.mark.sampled(4)
def test_a_damaged_one_is_replaced_and_kept(how: str, moto_server: Server, bucket: Bucket) -> None:
    config = made(moto_server)
    seed = json.loads(config)["seed"].encode()
    wrong = {
        "cut short": config[:100],
        "a digit of the seed": config.replace(seed, bytes([seed[0] ^ 1]) + seed[1:]),
        "empty": b"",
        "another store's": encode_config(decode_config(config)._replace(seed=5)),
    }[how]
    bucket.put(CONFIG_KEY, wrong, idempotent=True)
    if how != "another store's":
        with pytest.raises(FormatError, match="check --repair"):
            castore.open(moto_server.url())
    report = castore.check_store(moto_server.url(), repair=True)
    assert report.problems == []
    assert "was damaged" in report.repaired[0]
    assert bucket.get(CONFIG_KEY).body == config
    assert bucket.get(f"quarantine/{CONFIG_KEY}").body == wrong
    is_whole(moto_server)


@pytest.mark.parametrize("how", OTHER_BYTES)
def test_one_in_other_bytes_is_written_anew(
    how: str, moto_server: Server, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    config = made(moto_server)
    changed = OTHER_BYTES[how](config)
    bucket.put(CONFIG_KEY, changed, idempotent=True)
    url = moto_server.url()
    assert main(["-r", url, "check"]) == exits.FAILURE, "nothing is lost"
    assert "though it says the same: a repair writes it anew" in capsys.readouterr().out
    assert main(["-r", url, "check", "--repair", "--yes"]) == exits.OK
    told = capsys.readouterr().err
    assert "to do: write castore.json anew" in told
    assert "done: castore.json is written anew" in told
    assert bucket.get(CONFIG_KEY).body == config
    assert bucket.get(f"quarantine/{CONFIG_KEY}").body == changed
    assert castore.check_store(url, repair=True).repaired == []
    is_whole(moto_server)


def test_while_it_is_open(moto_server: Server, bucket: Bucket) -> None:
    config = made(moto_server)
    with castore.open(moto_server.url()) as store:
        bucket.delete(CONFIG_KEY)
        assert store.gets("large") == LARGE
        assert [problem.kind for problem in store.check().problems] == ["config"]
        assert store.check(repair=True).problems == []
        assert bucket.get(CONFIG_KEY).body == config
        # A repair with another's would take every object for damaged.
        other = decode_config(config)._replace(seed=5)
        bucket.put(CONFIG_KEY, encode_config(other), idempotent=True)
        with castore.open(moto_server.url()) as wrong, pytest.raises(ConfigLost, match="anew"):
            wrong.check(repair=True)
    is_whole(moto_server)


@pytest.mark.damages_store("castore.json is taken away")
def test_a_collection_while_it_is_open(moto_server: Server, bucket: Bucket) -> None:
    made(moto_server)
    with castore.open(moto_server.url()) as store:
        bucket.delete(CONFIG_KEY)
        with pytest.raises(ConfigLost, match=r"check --repair"):
            store.gc(grace_s=0)
        bucket.delete_many([entry.key for entry in bucket.list()])
        with pytest.raises(StoreNotFound, match="no store at"):
            store.gc(grace_s=0)


@pytest.mark.damages_store("castore.json is taken away")
def test_a_few_of_another_store_do_not_count(moto_server: Server, bucket: Bucket) -> None:
    config = made(moto_server)
    with castore.open(moto_server.url("other")) as other:
        other.puts("a stray", b"x")
        other.puts("another", b"x")
    with Bucket(moto_server.settings("other")) as elsewhere:
        stray = elsewhere.get("names/a stray").body
    bucket.put("names/a stray", stray, idempotent=True)
    assert repair_config(bucket) == ""
    bucket.delete(CONFIG_KEY)
    assert repair_config(bucket)
    assert bucket.get(CONFIG_KEY).body == config
    # As many of one store as of another: somebody has to say.
    bucket.delete_many([entry.key for entry in bucket.list("packs/")])
    bucket.delete("names/large")
    bucket.delete(CONFIG_KEY)
    with pytest.raises(ConfigLost, match="several stores"):
        repair_config(bucket)


@pytest.mark.damages_store("castore.json is taken away")
def test_what_says_nothing_of_it(moto_server: Server, bucket: Bucket) -> None:
    made(moto_server)
    for entry in [each for kind in ("packs/", "names/", "batches/") for each in bucket.list(kind)]:
        raw = bucket.get(entry.key).body
        bucket.put(entry.key, raw[:30] + bytes([raw[30] ^ 1]) + raw[31:], idempotent=True)
    assert repair_config(bucket) == "", "nothing to do while castore.json is there"
    bucket.delete(CONFIG_KEY)
    with pytest.raises(ConfigLost, match="put a copy of it back"):
        repair_config(bucket)


def test_names_of_no_store_are_not_taken_for_one(moto_server: Server, bucket: Bucket) -> None:
    bucket.put("names/table.csv", b"a,b\n", idempotent=True)
    bucket.put("packs/readme", b"hello", idempotent=True)
    assert repair_config(bucket) == ""
    with pytest.raises(NotAStore, match="not empty"):
        castore.open(moto_server.url())
    with pytest.raises(castore.errors.StoreNotFound):
        castore.open(moto_server.url(), create=False)
