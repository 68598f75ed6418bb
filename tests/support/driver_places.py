"""Where `driver.py` has its stores: in a folder, or on S3 (in memory, or on a server), each with
settings of its own, so small that little data has many chunks, segments and packs."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from memory_s3 import Actor, MemoryS3
from servers import QUICK

import castore
from castore.format.config import StoreConfig, encode_config
from castore.s3.client.bucket import Bucket
from castore.s3.client.settings import parse_settings
from castore.stream.chunker import ChunkSizes
from castore.system import isolated
from conducto import context


@dataclass(frozen=True, slots=True)
class Settings:
    """What one run has throughout; a seed's. Sizes in bytes."""

    chunk_bytes_avg: int
    collision_guard: str | None
    compression_level: int
    cache_bytes: int
    disk_cache_bytes: int
    threads: int
    inline_bytes_max: int
    pack_bytes_max: int
    segment_extents: int
    data_bytes_max: int
    batch_bytes: int
    tried_always: int

    @classmethod
    def of(cls, seed: int, kind: str) -> Settings:
        choose = random.Random(f"settings {seed}")
        return cls(
            chunk_bytes_avg=choose.choice([2816, 2816, 3072, 5120, 8448]),
            collision_guard=choose.choice([None, None, "sha256"]),
            compression_level=choose.choice([1, 1, 3, -5]),
            cache_bytes=choose.choice([0, 100_000, 32 << 20]),
            disk_cache_bytes=choose.choice([0, 400_000, 1 << 30]),
            threads=choose.choice([1, 2, 2]),
            inline_bytes_max=choose.choice([0, 100, 4096, 4096]),
            pack_bytes_max=choose.choice([60_000, 300_000, 300_000, 2_000_000]),
            segment_extents=choose.choice([3, 8, 8, 1024]),
            data_bytes_max=300_000 if kind == "local" else 200_000,
            batch_bytes=choose.choice([16_384, 4 << 20, 4 << 20]),
            tried_always=choose.choice([1, 2, 3, 5]),
        )

    def constants(self) -> dict[str, Any]:
        """The modules' constants that are other ones in a run, in each of its processes."""
        return {
            "castore.format.segment:SEGMENT_EXTENTS_MAX": self.segment_extents,
            "castore.stream.writer:BATCH_BYTES": self.batch_bytes,
            "castore.stream.writer:CUT_BYTES": self.batch_bytes // 4,
            "castore.stream.writer:TASK_BYTES": self.batch_bytes // 4,
            "castore.stream.alignment:TRIED_ALWAYS": self.tried_always,
            "castore.stream.alignment:TABLE_BASES_MAX": 16 * self.tried_always,
            "castore.stream.lookalikes:TRIED_ALWAYS": self.tried_always,
            "castore.stream.lookalikes:CREDIT_FIRST": self.tried_always,
            "castore.stream.lookalikes:FOUND_CREDIT": self.tried_always,
            "castore.stream.lookalikes:CREDIT_MAX": self.tried_always,
            "castore.stream.lookalikes:RECENT_BYTES_MAX": 4 * self.batch_bytes,
            "castore.stream.lookalikes:SLOTS": 16 * self.tried_always,
            "castore.local.session:ROWS_MAX": 24,
            "castore.local.session:SEGMENTS_MAX": 3,
            "castore.local.session:INLINE_BYTES_MAX": self.inline_bytes_max,
            "castore.s3.session:INLINE_BYTES_MAX": self.inline_bytes_max,
            "castore.s3.session:INLINE_ALONE_BYTES_MAX": 2 * self.inline_bytes_max,
            "castore.local.packs:PACK_BYTES_MAX": self.pack_bytes_max,
            "castore.local.gc.repack:SMALL_PACK_BYTES": self.pack_bytes_max // 16,
            "castore.local.gc.repack:FRAMES_MAX": 20,
            "castore.local.gc.repack:PACK_BYTES_MAX": self.pack_bytes_max,
            "castore.local.gc.repack:SEGMENTS_MAX": 3,
            "castore.local.gc.repack:ROWS_MAX": 16,
            "castore.local.gc.sweep:ROWS_MAX": 16,
            "castore.local.gc.sweep:PACKS_MAX": 2,
            "castore.local.gc.sweep:SEGMENTS_MAX": 6,
            "castore.transfer.imports:BATCH_FILES_MAX": 5,
            "castore.s3.uploads:PACK_BYTES_FIRST": self.pack_bytes_max // 4,
            "castore.s3.uploads:PACK_BYTES_MAX": self.pack_bytes_max,
            "castore.s3.gc.repack:BATCH_BYTES": 8192,
            "castore.s3.gc.repack:FRAMES_MAX": 40,
            "castore.s3.gc.survey:FRAMES_MAX": 40,
            "castore.s3.gc.survey:SMALL_PACK_BYTES": self.pack_bytes_max // 16,
            "castore.s3.hints:SMALL_MAX": 4,
            "castore.s3.hints:SMALL_BYTES": 300,
            "castore.s3.hints:READ_BYTES_MAX": 3000,
            "castore.s3.hints:SAMPLE_BYTES": 500,
            "castore.s3.client.retries:BACKOFF": QUICK,
        }


class Patches(ExitStack):
    """Changes to modules and the environment, which are undone at its end."""

    def set(self, where: str, value: Any) -> None:
        """`where` is "module:name"; there must be one already."""
        module, _, name = where.partition(":")
        owner = import_module(module)
        self.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def environ(self, name: str, value: str) -> None:
        before = os.environ.get(name)

        def undo() -> None:
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before

        self.callback(undo)
        os.environ[name] = value

    def settings(self, settings: Settings) -> None:
        for where, value in settings.constants().items():
            self.set(where, value)

    def checks_in_process(self) -> None:
        """A process for each check takes longer than most checks do."""
        run = isolated.run

        def here(task: str, index_path: str, **arguments: Any) -> Iterator[dict[str, Any]]:
            if not task.startswith("castore.local.check.run:"):
                return run(task, index_path, **arguments)
            module, _, function = task.partition(":")
            reports: list[dict[str, Any]] = []
            arguments.pop("fds", None)
            getattr(import_module(module), function)(reports.append, **arguments)
            return iter(json.loads(json.dumps(reports)))

        self.set("castore.system.isolated:run", here)


class Place:
    """A store's place, and how its Stores are opened: `store`, and `other`, of another machine
    where there are any."""

    kind = ""
    url = ""  # as `castore.open`, -r and fsspec take it
    has_processes = True  # that can use it, too

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.patches = Patches()
        self.patches.settings(settings)
        self.patches.checks_in_process()
        self.patches.environ("CASTORE_CACHE_DIR", str(folder / "cache"))
        self.patches.environ("CASTORE_STORE", str(folder / "not-this-one"))
        self.patches.environ("CONDUCTO_PIPELINE_ID", "p1")
        self.patches.environ("CONDUCTO_BASE_DIR", str(folder / "base"))

    def open_as(self, machine: str) -> None:
        """What is opened from now on is on this machine."""
        os.environ["CASTORE_CACHE_DIR"] = str(self.folder / "cache" / machine)

    def open(self, machine: str = "one", **options: Any) -> castore.Store:
        settings = self.settings
        self.open_as(machine)
        options = {
            "chunk_bytes_avg": settings.chunk_bytes_avg,
            "collision_guard": settings.collision_guard,
            "compression_level": settings.compression_level,
            "cache_bytes": settings.cache_bytes,
            "disk_cache_bytes": settings.disk_cache_bytes,
            "threads": settings.threads,
            **options,
        }
        return castore.open(self.url, **options)

    def for_child(self) -> dict[str, Any]:
        """What another process needs to use the store."""
        return {"url": self.url, "settings": asdict(self.settings)}

    def flip(self, choose: random.Random) -> None:
        """One bit of one pack, if there is one; nobody has the store open, and no machine keeps
        a copy of the frame."""
        raise NotImplementedError

    def close(self) -> None:
        context.close_stores()
        self.patches.close()


class LocalPlace(Place):
    kind = "local"

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder, settings)
        self.root = folder / "base" / "default" / "store"  # where conducto looks, too
        self.root.parent.mkdir(parents=True)
        self.url = str(self.root)

    def flip(self, choose: random.Random) -> None:
        packs = sorted(self.root.glob("packs/*/*.pack"))
        if packs:
            path = choose.choice(packs)
            path.write_bytes(_flipped(path.read_bytes(), choose))


class MemoryPlace(Place):
    """On a server in memory, whose clock the driver sets."""

    kind = "s3"
    has_processes = False

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder, settings)
        self.server = MemoryS3()
        self.server.clock = time.time()
        self.url = "s3://memory/identity/store"
        self.patches.set("castore.s3.client.bucket:Attempts", self.server.attempts)
        self.patches.set("castore.s3.lease:boot_clock", lambda: self.server.clock)
        self.patches.set("castore.s3.client.versions:is_versioned", lambda settings: False)
        _cloud(self.patches, "memory", "identity")
        with Bucket(parse_settings(self.url)) as bucket:
            bucket.put("castore.json", _config(settings), idempotent=True)

    def flip(self, choose: random.Random) -> None:
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        packs = [key for key in sorted(self.server.objects) if "/packs/" in key]
        if packs:
            key = choose.choice(packs)
            stored = self.server.objects[key]
            self.server.objects[key] = stored._replace(body=_flipped(stored.body, choose))

    def acting(self, actor: Actor) -> AbstractContextManager[None]:
        """What is opened in the block is that actor's."""
        return self.server.opening(actor)


class ServerPlace(Place):
    """On a server that speaks S3."""

    kind = "moto"

    def __init__(self, folder: Path, settings: Settings, endpoint_url: str, bucket: str) -> None:
        super().__init__(folder, settings)
        self.url = f"s3://{bucket}/identity/store"
        for name in [name for name in os.environ if name.startswith(("AWS_", "CASTORE_S3_"))]:
            self.patches.environ(name, "")
            del os.environ[name]
        self.patches.environ("AWS_ENDPOINT_URL", endpoint_url)
        self.patches.environ("AWS_ACCESS_KEY_ID", "test-access-key")
        self.patches.environ("AWS_SECRET_ACCESS_KEY", "test-secret-key")
        self.patches.environ("AWS_DEFAULT_REGION", "us-east-1")
        self.patches.environ("AWS_EC2_METADATA_DISABLED", "true")
        _cloud(self.patches, bucket, "identity")
        with Bucket(parse_settings(self.url)) as made:
            made.put("castore.json", _config(settings), idempotent=True)


def _flipped(raw: bytes, choose: random.Random) -> bytes:
    damaged = bytearray(raw)
    # By chance alone it would hardly ever be one of the header.
    bit = choose.randrange(8 * min(len(raw), choose.choice([64, len(raw), len(raw)])))
    damaged[bit >> 3] ^= 1 << (bit & 7)
    return bytes(damaged)


def _cloud(patches: Patches, bucket: str, identity: str) -> None:
    patches.environ("CONDUCTO_EXECUTION_ENV", "worker_cloud")
    patches.environ("CONDUCTO_S3_BUCKET", bucket)
    patches.environ("CONDUCTO_IDENTITY_ID", identity)


def _config(settings: Settings) -> bytes:
    """As `castore.open` writes it, but for the probing, which takes a server three seconds."""
    sizes = ChunkSizes.for_average(settings.chunk_bytes_avg)
    return encode_config(
        StoreConfig(
            store_id=os.urandom(16),
            seed=int.from_bytes(os.urandom(8)),
            chunk_bytes_min=sizes.min,
            chunk_bytes_avg=sizes.norm,
            chunk_bytes_max=sizes.max,
            collision_guard=settings.collision_guard,
        )
    )


@contextmanager
def place_of(kind: str, seed: int, folder: Path, make_server: Callable[[], Any]) -> Iterator[Place]:
    """A new store's place; `make_server` gives the (endpoint, bucket) of a server where one is
    needed."""
    settings = Settings.of(seed, kind)
    folder.mkdir(parents=True)
    place: Place
    if kind == "local":
        place = LocalPlace(folder, settings)
    elif kind == "s3":
        place = MemoryPlace(folder, settings)
    else:
        place = ServerPlace(folder, settings, *make_server())
    try:
        yield place
    finally:
        place.close()
        shutil.rmtree(folder)
