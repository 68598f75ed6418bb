"""Tars, whole and damaged."""

from __future__ import annotations

import tarfile


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **attributes: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in attributes.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT)


def file(name: str, content: bytes = b"x") -> bytes:
    return header(name, size=len(content)) + content + bytes(-len(content) % 512)


def link(name: str, target: str) -> bytes:
    return header(name, tarfile.SYMTYPE, linkname=target)


def extension(kind: bytes, content: bytes) -> bytes:
    """An extended header: tarfile would not write most of those in here."""
    info = tarfile.TarInfo("extension")
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def pax(**records: str) -> bytes:
    content = b""
    for key, value in records.items():
        record = f" {key.replace('_', '.')}={value}\n".encode()
        length = len(record) + 2
        length += len(str(length)) - 2
        content += b"%d" % (len(record) + len(str(length))) + record
    return extension(b"x", content)


def patched(block: bytes, offset: int, content: bytes) -> bytes:
    """A header with other bytes in it, and the checksum that goes with them."""
    block = block[:offset] + content + block[offset + len(content) :]
    total = sum(block[:148]) + 8 * 32 + sum(block[156:512])
    return block[:148] + b"%06o\0 " % total + block[156:]


END = bytes(1024)


GOOD = file("a/one", b"1" * 1000) + header("a/two", tarfile.DIRTYPE) + file("three", b"3") + END


SEEDS = [
    GOOD,
    pax(path="deep/er", size="3", mtime="1.5") + file("ok", b"abc") + END,
    file("a/b") + link("a/up", "../a/b") + link("x", "a") + link("loop", "loop") + END,
    extension(b"L", b"n" * 150 + b"\0") + file("ok") + extension(b"g", b"11 aa=bbbb\n") + END,
]


def with_checksums(archive: bytes) -> bytes:
    """Each block that looks like a header gets the right checksum, so that mutants get further."""
    fixed = b""
    for begin in range(0, len(archive), 512):
        block = archive[begin : begin + 512]
        fixed += patched(block, 0, b"") if b"ustar" in block[250:270] else block
    return fixed
