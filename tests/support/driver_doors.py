"""The ways into a store that `driver.py` uses: Python, fsspec, conducto, the command line, and each
of these in another process. All do the same changes, and raise what is a FileNotFoundError or a
FileExistsError."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from driver_model import Change, Model

import castore
import conducto
from castore.cli import main
from castore.errors import NameExists, NameNotFound
from castore.fs import CastoreFileSystem

PIPELINE, USER = "pipelines/p1/data/", "data/"


class Blocks:
    """A source whose reads are short, in blocks of odd sizes."""

    def __init__(self, data: bytes, choose: random.Random) -> None:
        self._file = io.BytesIO(data)
        self._choose = choose
        self._most = choose.choice([1 + len(data) // 50, 7777, 1 << 20])

    def read(self, size: int = -1, /) -> bytes:
        most = self._choose.randrange(1, self._most + 1)
        return self._file.read(most if size < 0 else min(size, most))


class Door:
    """`ways` are those in which it puts; `keeps_mode` those that keep one."""

    ways: tuple[str, ...] = ()
    keeps_mode: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def takes(self, change: Change, model: Model) -> bool:
        """Whether the change can be said in its words."""
        return change.verb in self.verbs

    def refuses(self, change: Change, model: Model) -> type[Exception] | None:
        """What it raises where the store would not."""
        return None

    def do(self, change: Change, way: str, choose: random.Random) -> None:
        raise NotImplementedError

    def gets(self, name: str) -> bytes:
        raise NotImplementedError

    def names(self) -> list[str]:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def source(self, change: Change) -> str:
        """The data as a file."""
        path = str(self.scratch / "source")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as file:
            file.write(change.data)
        os.chmod(path, change.mode)
        return path


def write_blocks(file: Any, data: bytes, choose: random.Random) -> None:
    at = 0
    while at < len(data):
        size = choose.randrange(1, len(data) // 3 + 2)
        file.write(data[at : at + size])
        at += size


class StoreDoor(Door):
    ways = ("bytes", "many", "path", "stream", "write")
    keeps_mode = ("bytes", "many", "path")
    verbs = ("put", "delete", "delete_prefix", "copy", "rename")

    def __init__(self, scratch: Path, store: castore.Store) -> None:
        super().__init__(scratch)
        self.store = store

    def do(self, change: Change, way: str, choose: random.Random) -> None:
        if change.verb == "put" and way == "write":
            with self.store.open(change.name, "xb" if change.if_absent else "wb") as file:
                write_blocks(file, change.data, choose)
        else:
            self.on(self.store, change, way, choose)

    def on(self, target: Any, change: Change, way: str, choose: random.Random) -> None:
        """On a Store or a Transaction."""
        name, if_absent = change.name, change.if_absent
        if change.verb == "put":
            if way == "bytes":
                target.puts(name, change.data, if_absent=if_absent, mode=change.mode)
            elif way == "many":
                target.puts_many({name: change.data}, if_absent=if_absent, mode=change.mode)
            elif way == "path":
                target.put(name, self.source(change), if_absent=if_absent)
            else:
                target.put(name, Blocks(change.data, choose), if_absent=if_absent)
        elif change.verb in ("copy", "rename"):
            getattr(target, change.verb)(name, change.target, if_absent=if_absent)
        elif change.verb == "delete_prefix":
            target.delete_prefix(name, unbounded=not name.endswith("/"))
        else:
            getattr(target, change.verb)(name)

    def gets(self, name: str) -> bytes:
        return self.store.gets(name)

    def names(self) -> list[str]:
        return list(self.store.names())

    def close(self) -> None:
        self.store.close()


class FsDoor(Door):
    """fsspec. A path that is a folder there as well as a name is no path that it is sure of."""

    ways = ("pipe", "pipe many", "put", "write")
    keeps_mode = ("put",)
    verbs = ("put", "delete", "delete_tree", "copy", "rename")

    def __init__(self, scratch: Path, url: str) -> None:
        super().__init__(scratch)
        self.fs = CastoreFileSystem(url, skip_instance_cache=True)

    def takes(self, change: Change, model: Model) -> bool:
        names = [change.name, change.target] if change.target else [change.name]
        if change.verb not in self.verbs or not change.name or change.name.endswith("/"):
            return False
        if change.name not in model.things and set(change.name) & set("*?["):
            return change.verb in ("put", "delete")  # for the others a pattern
        if change.verb in ("copy", "rename"):
            if change.if_absent:
                return False
            return all(model.below(name) in ([], [name]) for name in names)
        return change.verb == "delete_tree" or model.below(change.name) in ([], [change.name])

    def do(self, change: Change, way: str, choose: random.Random) -> None:
        fs, name = self.fs, change.name
        if change.verb == "put":
            mode = "create" if change.if_absent else "overwrite"
            if way == "pipe":
                fs.pipe_file(name, change.data, mode=mode)
            elif way == "pipe many":
                fs.pipe({name: change.data}, mode=mode)
            elif way == "put":
                fs.put_file(self.source(change), name, mode=mode)
            else:
                with fs.open(name, "xb" if change.if_absent else "wb") as file:
                    write_blocks(file, change.data, choose)
        elif change.verb == "delete":
            fs.rm_file(name)
        elif change.verb == "delete_tree":
            fs.rm(name, recursive=True)
        elif change.verb == "copy":
            fs.cp_file(name, change.target)
        else:
            fs.mv(name, change.target)

    def gets(self, name: str) -> bytes:
        with self.fs.open(name, "rb") as file:
            data: bytes = file.read()
        return data

    def names(self) -> list[str]:
        found: list[str] = self.fs.find("")
        return found

    def close(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.store.close()


class ConductoDoor(Door):
    ways = ("puts", "put", "stream")
    keeps_mode = ("put",)
    verbs = ("put", "delete", "delete_tree")

    def takes(self, change: Change, model: Model) -> bool:
        named = change.name.startswith((PIPELINE, USER)) and not change.name.endswith("/")
        return named and change.verb in self.verbs and not change.if_absent

    def refuses(self, change: Change, model: Model) -> type[Exception] | None:
        only_below = change.name not in model.things and bool(model.below(change.name))
        return IsADirectoryError if only_below and change.verb != "delete_tree" else None

    def do(self, change: Change, way: str, choose: random.Random) -> None:
        data, name = self._scope(change.name)
        if change.verb == "delete_tree":
            data.delete(name, recursive=True)
        elif change.verb == "delete":
            data.delete(name)
        elif way == "puts":
            data.puts(name, change.data)
        elif way == "put":
            data.put(name, self.source(change))
        else:
            data.put(name, Blocks(change.data, choose))

    def gets(self, name: str) -> bytes:
        data, name = self._scope(name)
        found: bytes = data.gets(name)
        return found

    def names(self) -> list[str]:
        """Those in its reach."""
        user = [USER + name for name in conducto.data.user.list()]
        return user + [PIPELINE + name for name in conducto.data.pipeline.list()]

    @staticmethod
    def _scope(name: str) -> tuple[Any, str]:
        if name.startswith(USER):
            return conducto.data.user, name.removeprefix(USER)
        return conducto.data.pipeline, name.removeprefix(PIPELINE)


class CommandDoor(Door):
    """`castore`, in this process."""

    ways = ("path", "stdin")
    keeps_mode = ("path",)
    verbs = ("put", "delete", "delete_tree", "copy", "rename")

    def __init__(self, scratch: Path, url: str) -> None:
        super().__init__(scratch)
        self.url = url

    def takes(self, change: Change, model: Model) -> bool:
        if not change.name.strip("/") or change.name.endswith("/"):
            return False
        return change.verb in self.verbs

    def do(self, change: Change, way: str, choose: random.Random) -> None:
        words = ["--if-absent"] if change.if_absent else []
        stdin = b""
        if change.verb == "put":
            stdin = change.data
            source = self.source(change) if way == "path" else "-"
            words = ["put", *words, "--", source, change.name]
        elif change.verb == "delete":
            words = ["rm", "--", change.name]
        elif change.verb == "delete_tree":
            words = ["rm", "-R", "--", change.name]
        else:
            verb = {"copy": "cp", "rename": "mv"}[change.verb]
            words = [verb, *words, "--", change.name, change.target]
        code, _, said = self.run(*words, stdin=stdin)
        if code == 14:
            raise NameNotFound(change.name)
        if code == 1 and change.if_absent:
            raise NameExists(change.target or change.name)
        assert code == 0, f"castore {words} ended with {code}: {said}"

    def gets(self, name: str) -> bytes:
        code, data, said = self.run("cat", "--", name)
        assert code == 0, said
        return data

    def names(self) -> list[str]:
        code, said, complaint = self.run("--json", "ls")
        assert code == 0, complaint
        return [json.loads(line)["name"] for line in said.splitlines()]

    def run(self, *words: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        """(exit code, stdout, stderr)."""
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            files[0].write(stdin)
            files[0].seek(0)
            texts = [io.TextIOWrapper(io.FileIO(os.dup(each.fileno()), "r+")) for each in files]
            before = sys.stdin, sys.stdout, sys.stderr
            sys.stdin, sys.stdout, sys.stderr = texts
            try:
                code = main(["-r", self.url, *words])
            finally:
                sys.stdin, sys.stdout, sys.stderr = before
                for text in texts:
                    text.close()
            said = []
            for file in files[1:]:
                file.seek(0)
                said.append(file.read())
        return code, said[0], said[1].decode(errors="replace")


class PeerDoor(Door):
    """Any of the others, in another process that stays."""

    verbs = ("put", "delete", "delete_tree", "delete_prefix", "copy", "rename")

    def __init__(self, scratch: Path, place: dict[str, Any]) -> None:
        super().__init__(scratch)
        program = str(Path(__file__).with_name("driver_peer.py"))
        self._process = subprocess.Popen(
            [sys.executable, program, json.dumps({**place, "scratch": str(scratch)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def inner(self, door: str, change: Change, way: str, seed: int) -> None:
        """Let its door of this name do the change."""
        document = {**asdict(change), "data": base64.b64encode(change.data).decode()}
        self.ask(verb="do", door=door, change=document, way=way, seed=seed)

    def gets(self, name: str) -> bytes:
        return base64.b64decode(self.ask(verb="gets", name=name))

    def names(self) -> list[str]:
        found: list[str] = self.ask(verb="names")
        return found

    def ask(self, **question: Any) -> Any:
        """Raises what it raised."""
        self.tell(**question)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the other process ended with {self._process.wait()}"
        answer = json.loads(line)
        if "raised" in answer:
            kinds = {"found": NameNotFound, "exists": NameExists, "folder": IsADirectoryError}
            kind = kinds.get(answer["raised"])
            assert kind is not None, f"in the other process:\n{answer['trace']}"
            raise kind(answer["trace"].splitlines()[-1])
        return answer["answer"]

    def tell(self, **question: Any) -> None:
        """Ask, and wait for no answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        status = self._process.wait(60)
        self._process.stdout.close()
        assert status == 0, f"the other process ended with {status}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


def doors_of(store: castore.Store, url: str, scratch: Path) -> dict[str, Door]:
    """All that work in one process."""
    return {
        "store": StoreDoor(scratch, store),
        "fs": FsDoor(scratch, url),
        "conducto": ConductoDoor(scratch),
        "command": CommandDoor(scratch, url),
    }
