"""What the benches deduplicate: releases of real packages, and generated tables with edits.

A release is a wheel that `pip download` fetches, turned into a plain tar: the members sorted, with
fixed times and owners; or, for `sdist`, a source package, unpacked to the tar that it is. What was
downloaded and the tars are kept in `bench/corpora/` (ignored by git), so that a second run needs no
network. The wheels are those for CPython 3.11 on x86-64 Linux, whatever runs the bench: all measure
the same bytes.

Generated series are two versions of one table: the second has a row flipped, inserted or removed
in a few hundred places. They depend on nothing but the seed.
"""

from __future__ import annotations

import gzip
import io
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

CORPORA = Path(__file__).resolve().parent / "corpora"

# botocore: JSON, uncompressed until 1.31. Django: Python and translations. scipy, pandas: machine
# code, and Python.
PACKAGES = {
    "botocore": ("1.29.13", "1.29.73", "1.29.133", "1.31.25", "1.31.55", "1.31.85"),
    "django": ("4.2.1", "4.2.8", "5.0", "5.0.6", "5.1"),
    "scipy": ("1.11.4", "1.12.0", "1.13.0", "1.13.1"),
    "pandas": ("2.1.0", "2.1.4", "2.2.0"),
}
QUICK_PACKAGES = {"django": ("4.2.1", "4.2.8")}

# Eight releases in a row, and how they are packed.
SERIES = {
    "django": ("sdist", ("4.2.1", "4.2.4", "4.2.8", "4.2.11", "5.0", "5.0.3", "5.0.6", "5.1")),
    "botocore": ("sdist", tuple(f"1.34.{patch}" for patch in range(10, 151, 20))),
    "numpy": (
        "wheel",
        ("1.25.0", "1.25.1", "1.25.2", "1.26.0", "1.26.1", "1.26.2", "1.26.3", "1.26.4"),
    ),
    "scipy": (
        "wheel",
        ("1.10.1", "1.11.1", "1.11.2", "1.11.3", "1.11.4", "1.12.0", "1.13.0", "1.13.1"),
    ),
}

WHEELS_FOR = ("--platform", "manylinux2014_x86_64", "--python-version", "3.11")


class Unavailable(RuntimeError):
    """pip, or the network, did not give us the package."""


def release(package: str, version: str) -> Path:
    """The plain tar of one release; fetched when it isn't there yet."""
    tar = CORPORA / f"{package}-{version}.tar"
    if not tar.exists():
        CORPORA.mkdir(exist_ok=True)
        wheel = _downloaded(package, version, "wheels", "*.whl", "--only-binary", *WHEELS_FOR)
        (CORPORA / ".partial.tar").write_bytes(_as_tar(wheel))
        (CORPORA / ".partial.tar").rename(tar)
    return tar


def sdist(package: str, version: str) -> Path:
    """The tar of one release's source package, unpacked; fetched when it isn't there yet."""
    tar = CORPORA / f"{package}-{version}-source.tar"
    if not tar.exists():
        CORPORA.mkdir(exist_ok=True)
        packed = _downloaded(package, version, "sdists", "*.tar.gz", "--no-binary")
        with gzip.open(packed) as source, open(CORPORA / ".partial.tar", "wb") as target:
            shutil.copyfileobj(source, target)
        (CORPORA / ".partial.tar").rename(tar)
    return tar


def series(package: str, count: int) -> list[Path]:
    """The tars of the first `count` of one of SERIES, the oldest first. Raises Unavailable."""
    kind, versions = SERIES[package]
    fetch = sdist if kind == "sdist" else release
    return [fetch(package, version) for version in versions[:count]]


def _downloaded(
    package: str, version: str, kept: str, pattern: str, which: str, *more: str
) -> Path:
    folder = CORPORA / kept / f"{package}-{version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += [which, ":all:", *more, "--dest", str(folder)]
    try:
        if not any(folder.glob(pattern)):
            subprocess.run(
                [*command, f"{package}=={version}"], check=True, capture_output=True, timeout=300
            )
        return next(folder.glob(pattern))
    except (subprocess.SubprocessError, OSError, StopIteration) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        last_line = said.decode(errors="replace").strip().splitlines()[-1:]
        raise Unavailable(f"{package} {version}: {' '.join(last_line)}") from error


def _as_tar(wheel: Path) -> bytes:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(wheel) as members,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name in sorted(members.namelist()):
            content = members.read(name)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


# ---- generated ----------------------------------------------------------------------------------

Row = Callable[[random.Random, int], bytes]


def generated(name: str, size: int) -> list[bytes]:
    """Two versions of a table of about `size` bytes."""
    chance = random.Random(f"castore {name}")
    row = GENERATED[name]
    rows: list[bytes] = []
    total = 0
    while total < size:
        rows.append(row(chance, len(rows)))
        total += len(rows[-1])
    return [b"".join(rows), b"".join(_edited(rows, chance, size // 80_000))]


def _edited(rows: list[bytes], chance: random.Random, edits: int) -> list[bytes]:
    rows = list(rows)
    for _ in range(edits):
        at = chance.randrange(len(rows))
        kind = chance.random()
        if kind < 0.5:
            row = bytearray(rows[at])
            row[chance.randrange(len(row))] ^= 1 << chance.randrange(8)
            rows[at] = bytes(row)
        elif kind < 0.75:
            rows.insert(at, chance.choice(rows))
        else:
            del rows[at]
    return rows


_WORDS = ("alpha", "beta", "gamma", "delta", "Berlin", "Tokyo", "Lagos", "open", "closed")


def _csv(chance: random.Random, n: int) -> bytes:
    word, day = chance.choice(_WORDS), chance.randint(1, 28)
    return f"{n},2026-03-{day:02d},{word},{chance.random() * 1000:.2f}\n".encode()


def _log(chance: random.Random, n: int) -> bytes:
    clock = f"{n // 3600 % 24:02d}:{n // 60 % 60:02d}:{n % 60:02d}"
    word, took = chance.choice(_WORDS), chance.randrange(900)
    return f"2026-03-01T{clock} INFO [{word}] request {n} served in {took} ms\n".encode()


def _json(chance: random.Random, n: int) -> bytes:
    tags = ", ".join(f'"{chance.choice(_WORDS)}"' for _ in range(chance.randrange(4)))
    return f'{{"id": {n}, "price": {chance.random() * 100:.2f}, "tags": [{tags}]}}\n'.encode()


def _records_64(chance: random.Random, n: int) -> bytes:
    word = chance.choice(_WORDS).encode()
    cents, count = chance.randrange(10_000), chance.randrange(1000)
    return struct.pack("<QQdI8s28x", 10**18 + n * 10**6, n, cents / 100, count, word)


def _records_64_text(chance: random.Random, n: int) -> bytes:
    words = f"{chance.choice(_WORDS):<12}|{n:08d}|{chance.choice(_WORDS):<10}"
    return f"{words}|{chance.random() * 9999:8.2f}".ljust(63).encode() + b"\n"


def _records_48(chance: random.Random, n: int) -> bytes:
    return struct.pack(
        "<QIIdd16x", n, chance.randrange(5), chance.randrange(999), chance.random(), 1
    )


def _integers(chance: random.Random, n: int) -> bytes:
    return struct.pack("<q", chance.randrange(300))


def _floats(chance: random.Random, n: int) -> bytes:
    return struct.pack("<f", chance.gauss(0, 1))


GENERATED: dict[str, Row] = {
    "csv": _csv,
    "log lines": _log,
    "json lines": _json,
    "64-byte records": _records_64,
    "64-byte text rows": _records_64_text,
    "48-byte records": _records_48,
    "small 8-byte integers": _integers,
    "4-byte floats": _floats,
}
