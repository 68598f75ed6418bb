"""The other process of `driver.py`: does what it is asked on stdin, in JSON, line by line."""

from __future__ import annotations

import base64
import json
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from driver_doors import Door, StoreDoor, doors_of
from driver_model import Change
from driver_places import Patches, Settings

import castore
from conducto import context


class Slow:
    """A source that says when it has given some of its bytes, and then takes its time, so that who
    reads it can be killed there."""

    def __init__(self, data: bytes, said_at: int) -> None:
        self._data, self._at, self._said_at = data, 0, said_at

    def read(self, size: int = -1, /) -> bytes:
        if self._at >= self._said_at:
            self._said_at = len(self._data) + 1
            print(json.dumps({"answer": "half"}), flush=True)
            time.sleep(0.002)
        block = self._data[self._at : self._at + min(size, 20_000)]
        self._at += len(block)
        return block


def answer(doors: dict[str, Door], question: dict[str, Any]) -> Any:
    verb = question["verb"]
    store = doors["store"]
    assert isinstance(store, StoreDoor)
    if verb == "do":
        document = question["change"]
        change = Change(**{**document, "data": base64.b64decode(document["data"])})
        doors[question["door"]].do(change, question["way"], random.Random(question["seed"]))
    elif verb == "gets":
        return base64.b64encode(store.gets(question["name"])).decode()
    elif verb == "names":
        return store.names()
    elif verb == "stats":
        return store.store.stats()._asdict()
    elif verb == "gc":
        return store.store.gc(**question["options"]).found_nothing
    elif verb == "slow":
        store.store.put(question["name"], Slow(Path(question["path"]).read_bytes(), question["at"]))
    else:
        raise ValueError(verb)
    return None


def main() -> None:
    place = json.loads(sys.argv[1])
    settings = Settings(**place["settings"])
    scratch = Path(place["scratch"]) / f"peer-{os.getpid()}"
    scratch.mkdir()
    patches = Patches()
    patches.settings(settings)
    patches.environ("CASTORE_CACHE_DIR", str(scratch / "cache"))
    with castore.open(place["url"], threads=settings.threads, create=False) as store:
        doors = doors_of(store, place["url"], scratch)
        for line in sys.stdin:
            try:
                said = {"answer": answer(doors, json.loads(line))}
            except Exception as error:
                kinds = {"found": FileNotFoundError, "exists": FileExistsError}
                kinds |= {"folder": IsADirectoryError}
                raised = [word for word, kind in kinds.items() if isinstance(error, kind)]
                said = {"raised": (raised or ["other"])[0], "trace": traceback.format_exc()}
            print(json.dumps(said), flush=True)
        doors["fs"].close()
        context.close_stores()


if __name__ == "__main__":
    main()
