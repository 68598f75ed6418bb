"""What bench_small.py times of castore's API, as a program that imports nothing else.

python bench/small_verbs.py VERB STORE FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import islice

import castore

READ_TOGETHER = 1000  # objects


def main(verb: str, path: str, folder: str) -> None:
    if verb.startswith("fs."):
        by_fsspec(verb, path, folder)
        return
    with castore.open(path) as store:
        if verb == "get":
            names = store.names()
            while wanted := [(name, None) for name in islice(names, READ_TOGETHER)]:
                for data in store.gets_ranges(wanted):
                    assert isinstance(data, bytes)
        elif verb == "gets":
            for name in store.names():
                store.gets(name)
        elif verb == "put":
            store.puts_many(contents(folder))
        else:
            with store.transaction() as transaction:
                for name, data in contents(folder):
                    transaction.puts(name, data)


def by_fsspec(verb: str, path: str, folder: str) -> None:
    from castore.fs import CastoreFileSystem

    fs = CastoreFileSystem(path)
    if verb == "fs.put":
        fs.put(f"{folder}/", "", recursive=True)
    else:
        fs.get("", f"{folder}/", recursive=True)
    fs.store.close()


def contents(folder: str) -> Iterator[tuple[str, bytes]]:
    for below in sorted(os.listdir(folder)):
        for leaf in sorted(os.listdir(os.path.join(folder, below))):
            with open(os.path.join(folder, below, leaf), "rb") as file:
                yield f"{below}/{leaf}", file.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
