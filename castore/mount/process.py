"""Mounts as processes: serving one, beginning one, and ending one."""

from __future__ import annotations

import contextlib
import ctypes.util
import errno
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import castore
from castore.errors import CastoreError
from castore.mount.mounts import served_by

log = logging.getLogger("castore.mount")

END_S = 60.0  # until its process has published what is left
POLL_S = 0.02
MOUNTED = b"mounted\n"


class MountUnavailable(CastoreError, OSError):
    """Nothing can be mounted: something is not installed, or not allowed here."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def unavailable() -> str | None:
    """Why nothing can be mounted on this machine, as far as that can be told without trying."""
    if sys.platform != "linux":
        return "mounts are for Linux"
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is not installed: pip install 'castore[mount]'"
    if "FUSE_LIBRARY_PATH" not in os.environ and ctypes.util.find_library("fuse3") is None:
        return "libfuse 3 is not installed (on Debian and Ubuntu: apt-get install fuse3)"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse: the kernel has no FUSE, or this container was not given it"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no permission for /dev/fuse"
    if os.geteuid() and shutil.which("fusermount3") is None:
        return "fusermount3 is not installed (on Debian and Ubuntu: apt-get install fuse3)"
    return None


def serve(
    store: castore.Store,
    folder: str,
    *,
    prefixes: Mapping[str, str] | None = None,
    writable: bool = False,
    on_mounted: Any = None,
) -> None:
    """Serve the open store at the folder, in this process's main thread, until it is unmounted or a
    signal ends it. What is open for writing when a signal ends it is not published.

    `prefixes`: see `mount`. `on_mounted` is called when the mount is there. Raises
    MountUnavailable.
    """
    folder = _place(folder)
    from castore.mount import fuse  # loads libfuse
    from castore.mount.tree import Tree

    tree = Tree(store, prefixes, writable=writable)
    was_unmounted = False
    try:
        was_unmounted = fuse.run(tree, folder, on_mounted=on_mounted or (lambda: None))
    except RuntimeError as error:
        raise MountUnavailable(f"nothing can be mounted at {folder}: see above") from error
    finally:
        tree.close(publish=was_unmounted)


def mount(
    store: str,
    folder: str,
    *,
    prefixes: Mapping[str, str] | None = None,
    writable: bool = False,
    quiet: bool = False,
) -> None:
    """Begin a process that serves the store at the folder, which is there when this returns.

    - `store`: its path or URL; it must be there.
    - `prefixes`: what begins the names that are shown: {"": "tables/"} for those below `tables/`,
      or a prefix for each of several folders right below. By default the whole store is.
    - `writable`: files may be written, and each is published when it is closed.
    - `quiet`: what goes wrong later is not written to this process's stderr.

    Raises MountUnavailable; what `castore.open` raises.
    """
    process, stdin = _begin(store, folder, prefixes, writable=writable, quiet=quiet, tied=False)
    stdin.close()
    process.returncode = 0  # it goes on without us, and nobody waits for it


@contextlib.contextmanager
def mounted(
    store: str,
    folder: str,
    *,
    prefixes: Mapping[str, str] | None = None,
    writable: bool = False,
    env: Mapping[str, str] | None = None,
    remove: Sequence[str] = (),
) -> Iterator[str]:
    """The folder, for as long as the block: a mount that ends with it, or with this process,
    however that ends. Arguments and errors are those of `mount`; `env` is the environment of the
    process that serves it, by default this one's; `remove`: what goes with the mount, be it the
    folder, when it is empty, or links that lead to it.

    At the end of the block what was closed is published. Who still has files open in it finds them
    disconnected.
    """
    process, stdin = _begin(
        store, folder, prefixes, writable=writable, quiet=False, tied=True, env=env, remove=remove
    )
    try:
        yield folder
    finally:
        try:
            unmount(folder, lazily=True)
        finally:
            stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:  # somebody has a file open
                process.terminate()
                process.wait()


def unmount(folder: str, *, lazily: bool = False) -> None:
    """End the mount at the folder. When it returns, what was closed is published.

    Raises OSError: EINVAL where nothing of castore is mounted, EBUSY while files in it are open,
    or a shell is in it. `lazily`, if it is still busy after a second it is taken out of sight, and
    ends with its last file.
    """
    folder = os.path.realpath(folder)
    process = served_by(folder)
    if process is None:
        raise OSError(errno.EINVAL, "no store is mounted there", folder)
    deadline = time.monotonic() + (1.0 if lazily else 0.0)
    while True:
        refusal = _unmount(folder)
        if refusal is None:
            break
        if time.monotonic() >= deadline:
            if not lazily or _unmount(folder, "-z") is not None:
                raise OSError(errno.EBUSY, refusal, folder)
            break
        time.sleep(POLL_S)
    deadline = time.monotonic() + END_S
    while os.path.exists(f"/proc/{process}") and not lazily and time.monotonic() < deadline:
        time.sleep(POLL_S)


def main() -> int:
    """The process of a mount: `python -m castore.mount`, with what to do as JSON on stdin."""
    asked = json.loads(sys.stdin.readline())
    logging.basicConfig(format="castore: %(message)s")
    folder = asked["folder"]
    if asked["tied"]:
        threading.Thread(target=_end_with, args=(sys.stdin, folder), daemon=True).start()

    def say() -> None:
        os.dup2(asked["stderr"], sys.stderr.fileno())
        os.write(sys.stdout.fileno(), MOUNTED)

    try:
        with castore.open(asked["store"], create=False, read_only=not asked["writable"]) as store:
            serve(
                store,
                folder,
                prefixes=asked["prefixes"],
                writable=asked["writable"],
                on_mounted=say,
            )
    except (CastoreError, OSError) as error:
        print(f"castore: {error}", file=sys.stderr)
        return 1
    for path in asked["remove"]:
        _remove(path, folder)
    return 0


# ---------------------------------------------------------------- parts of these


def _place(folder: str) -> str:
    """The folder's own path. Raises MountUnavailable, NotADirectoryError."""
    reason = unavailable()
    if reason is not None:
        raise MountUnavailable(reason)
    folder = os.path.realpath(folder)
    if not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, "there is no such folder to mount at", folder)
    if served_by(folder) is not None:
        raise MountUnavailable(f"a store is mounted at {folder} already")
    return folder


def _begin(
    store: str,
    folder: str,
    prefixes: Mapping[str, str] | None,
    *,
    writable: bool,
    quiet: bool,
    tied: bool,
    env: Mapping[str, str] | None = None,
    remove: Sequence[str] = (),
) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    folder = _place(folder)
    asked = {
        "store": store,
        "folder": folder,
        "prefixes": prefixes,
        "writable": writable,
        "tied": tied,
        "remove": [*remove],
    }
    with tempfile.TemporaryFile() as said, _stderr(quiet) as later:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "castore.mount"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            pass_fds=[later],
            env=env,
            start_new_session=True,  # a Ctrl-C is for what uses it
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({**asked, "stderr": later}).encode() + b"\n")
            process.stdin.flush()
        with process.stdout:
            is_mounted = process.stdout.readline() == MOUNTED
        if not is_mounted:
            process.stdin.close()
            process.wait()
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            why = [line.removeprefix("castore: ") for line in lines] or ["its process has ended"]
            raise MountUnavailable(f"nothing can be mounted at {folder}: {'; '.join(why)}")
    return process, process.stdin


@contextlib.contextmanager
def _stderr(quiet: bool) -> Iterator[int]:
    """Where the process of a mount complains once that is there."""
    fd = os.open(os.devnull, os.O_WRONLY) if quiet else os.dup(2)
    try:
        yield fd
    finally:
        os.close(fd)


def _end_with(stdin: IO[str], folder: str) -> None:
    """Unmount when the process at the other end has ended."""
    stdin.read()
    while True:  # it may not be there yet; once it is gone, so is this process
        with contextlib.suppress(OSError):
            unmount(folder, lazily=True)
        time.sleep(POLL_S)


def _remove(path: str, folder: str) -> None:
    """The folder, or a link that leads to it, and nothing else that came to be there."""
    try:
        if os.path.realpath(path) != folder:
            return
        if os.path.islink(path):
            os.unlink(path)
        else:
            os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s stays: %s", path, error)


def _unmount(folder: str, *options: str) -> str | None:
    """None, or why it can't be."""
    command = ["fusermount3", "-u", *options]
    if shutil.which("fusermount3") is None:
        command = ["umount", *(["-l"] if options else [])]
    done = subprocess.run(
        [*command, "--", folder], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    return None if done.returncode == 0 else done.stderr.strip() or "it is busy"
