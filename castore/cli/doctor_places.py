"""What doctor says of a place, and of the disk below a folder."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from castore.cli.output import human_size

FREE_BYTES_MIN = 1 << 30
MOUNTS = "/proc/self/mountinfo"
NETWORK = {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"}
NETWORK |= {"nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf"}
NETWORK |= {"fuse.s3fs", "fuse.sshfs", "fuse.glusterfs", "fuse.rclone", "fuse.gcsfuse", "virtiofs"}
IN_MEMORY = {"tmpfs", "ramfs"}
WITHOUT_MODES = {"msdos", "vfat", "exfat"}

Verdict = Literal["ok", "warning", "problem"]


class Check(NamedTuple):
    """One thing that was looked at. `means` is what follows for the user, if anything does."""

    what: str
    verdict: Verdict
    found: str
    means: str = ""


def check_file_system(path: str, what: str) -> Check:
    kind, mounted = file_system_of(path)
    if kind in NETWORK:
        return Check(
            what,
            "warning",
            f"{kind}, a network file system, at {mounted}",
            "LMDB's locks and maps don't work across machines: one machine at a time, or the index "
            "is lost; for many machines use a store on S3"
            if what == "file system"
            else "LMDB's locks and maps don't work across machines: set CASTORE_CACHE_DIR to a "
            "local disk",
        )
    if kind in IN_MEMORY and what == "file system":
        return Check(
            what,
            "warning",
            f"{kind} at {mounted}",
            "it is in memory, and gone with a restart of the machine",
        )
    return Check(what, "ok", f"{kind} at {mounted}" if kind else "of an unknown kind")


def file_system_of(path: str, mounts: str = MOUNTS) -> tuple[str, str]:
    """(type, where it is mounted) of the file system that a path is or would be on; ("", "") on a
    system that doesn't say."""
    kind, mounted = "", ""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                point = _unescaped(left.split(" ")[4])
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(mounted):  # of several at a place the last counts
                    kind, mounted = right.split(" ")[0], point
    except (OSError, IndexError):
        return "", ""
    return kind, mounted


def made_own(path: str, chmod: str) -> str:
    """How a folder is made one's own: by `chmod`, but where there are no permission bits."""
    kind, mounted = file_system_of(path)
    if kind not in WITHOUT_MODES:
        return chmod
    options = f"uid={os.geteuid()},umask=077"
    return f"mount {mounted} with {options} ({kind} keeps no permission bits)"


def _unescaped(point: str) -> str:
    for escape, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        point = point.replace(escape, character)
    return point


def check_free_space(path: str, what: str) -> Check:
    status = os.statvfs(existing(path))
    free = status.f_bavail * status.f_frsize
    if free >= FREE_BYTES_MIN:
        return Check(what, "ok", human_size(free))
    return Check(what, "warning", human_size(free), "puts and the index need room: free some")


def existing(path: str) -> str:
    """The path, or the nearest folder above it that is there."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path
