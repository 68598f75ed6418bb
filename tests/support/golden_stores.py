"""Where the golden stores are, and how they are loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from memory_s3 import MemoryS3, Stored

FOLDER = Path(__file__).resolve().parent.parent / "golden"
URL = "s3://memory/store"


def stores(kind: str) -> list[Path]:
    return sorted(FOLDER.glob(f"v*-{kind}*"))


def facts(golden: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((golden / "facts.json").read_text())
    return found


def load(golden: Path) -> MemoryS3:
    """A server with the objects, at the time when they were written."""
    server = MemoryS3()
    table = json.loads((golden / "objects" / "keys.json").read_text())
    server.clock = table["clock"]
    for row in table["objects"]:
        body = (golden / "objects" / row["file"]).read_bytes()
        etag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
        server.objects[row["key"]] = Stored(body, etag, row["modified"])
    return server
