"""Build what is slow to build once for each state of its sources, and test it each time.

    python docs/examples/build_cache.py --sources=src --run

The build is kept in the user's data by a checksum of what it was built from. The next run, of this
pipeline or of another, restores it.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import conducto as co

CACHE = "example-build"


def pipeline(sources: str = ".", out: str = "build") -> co.Serial:
    """Build or restore, then test."""
    root = co.Serial(doc=co.util.magic_doc())
    root["build"] = co.Exec(build, str(Path(sources).resolve()), str(Path(out).resolve()))
    root["test"] = co.Exec(test, str(Path(out).resolve()))
    return root


def build(sources: str, out: str) -> None:
    """Into the folder `out`, which is replaced."""
    checksum = checksum_of(Path(sources))
    if co.data.user.cache_exists(CACHE, checksum):
        co.data.user.restore_cache(CACHE, checksum, str(Path(out).parent))
        print("restored", checksum)
        return
    Path(out).mkdir(exist_ok=True)
    for path in sorted(Path(sources).glob("*.py")):
        time.sleep(0.1)  # what a compiler does
        (Path(out) / f"{path.stem}.built").write_text(path.read_text().upper())
    co.data.user.save_cache(CACHE, checksum, out)
    print("built", checksum)


def checksum_of(sources: Path) -> str:
    """Of the names and contents of the sources."""
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.py")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def test(out: str) -> None:
    built = sorted(Path(out).glob("*.built"))
    assert built, "nothing was built"
    assert all(path.read_text().isupper() for path in built)
    print(len(built), "files are well")


if __name__ == "__main__":
    co.main(default=pipeline)
