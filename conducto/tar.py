"""Reading a tar that is not trusted: regular files, folders and symbolic links, with every length
capped.

POSIX (ustar and pax) and GNU long names are understood; hard links, devices, sparse files and
anything else are refused, as are names and links that leave the folder they are unpacked into.
Whatever the bytes, the only errors are CacheRefused and those of the stream they are read from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from conducto.errors import CacheRefused

BLOCK_BYTES = 512
PIECE_BYTES = 1 << 20

Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may ask for. `save` keeps to them too, so that what it saves comes back."""

    bytes_max: int = 1 << 40  # in all, headers and padding included
    expansion_max: int = 200  # times the archive's own size, after the first 64 MiB
    members_max: int = 1_000_000
    name_bytes_max: int = 2048
    part_bytes_max: int = 255
    depth_max: int = 100
    extension_bytes_max: int = 64 << 10  # a pax header, a GNU long name
    extensions_max: int = 8  # of one member
    pax_records_max: int = 4_000_000  # of all members
    folders_max: int = 250_000  # as they are remembered
    entered_max: int = 500_000  # folders gone into, again where members are in no order
    link_bytes_max: int = 4095


@dataclass(frozen=True, slots=True)
class Member:
    """One file, folder or symbolic link. `parts` are its name's components; none, the folder that
    all are in. `link` is where a link leads, inside that folder."""

    parts: tuple[str, ...]
    is_folder: bool
    size: int
    mode: int
    mtime_ns: int
    link: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """One 512-byte header, as it stands."""

    name: bytes
    type: bytes
    size: int
    mode: int
    mtime_ns: int
    link: bytes = b""


class TarReader:
    """The members of a tar, in order; `pieces` reads the current one's content."""

    def __init__(self, read: Read, limits: Limits) -> None:
        self._read = read
        self._limits = limits
        self._left = 0  # of the current member's content
        self._padding = 0
        self._pax_records = 0

    def __iter__(self) -> Iterator[Member]:
        members = 0
        while (header := self._next_header()) is not None:
            members += 1
            if members > self._limits.members_max:
                raise CacheRefused(f"the archive has more than {self._limits.members_max} members")
            member = _member(header, self._limits)
            self._left, self._padding = member.size, -member.size % BLOCK_BYTES
            yield member
            for _ in self.pieces():
                pass
            self._read_exactly(self._padding)

    def pieces(self) -> Iterator[bytes]:
        while self._left:
            piece = self._read(min(self._left, PIECE_BYTES))
            if not piece:
                raise CacheRefused("the archive is cut short")
            self._left -= len(piece)
            yield piece

    def _next_header(self) -> Header | None:
        """The next member's header, with what extended headers say about it; None at the end."""
        extensions: dict[bytes, bytes] = {}
        for _ in range(self._limits.extensions_max + 1):
            header = decode_header(self._read_exactly(BLOCK_BYTES))
            if header is None:
                if extensions:
                    raise CacheRefused("the archive ends where a member should be")
                return None
            if header.type == b"x":
                extensions |= self._pax(header)
            elif header.type == b"g":
                if {b"path", b"linkpath", b"size"} & self._pax(header).keys():
                    raise CacheRefused("the archive gives all its members one name or size")
            elif header.type in (b"L", b"K"):
                keyword = b"path" if header.type == b"L" else b"linkpath"
                extensions[keyword] = self._extension(header).partition(b"\0")[0]
            else:
                return _extended(header, extensions)
        raise CacheRefused("a member has too many extended headers")

    def _pax(self, header: Header) -> dict[bytes, bytes]:
        """What an extended header says that means anything here."""
        records = decode_pax(self._extension(header))
        self._pax_records += len(records)
        if self._pax_records > self._limits.pax_records_max:
            raise CacheRefused("the archive's extended headers say too much")
        return {keyword: records[keyword] for keyword in _PAX_KEYWORDS & records.keys()}

    def _extension(self, header: Header) -> bytes:
        if header.size > self._limits.extension_bytes_max:
            raise CacheRefused(f"an extended header of {header.size} bytes is too long")
        content = self._read_exactly(header.size)
        self._read_exactly(-header.size % BLOCK_BYTES)
        return content

    def _read_exactly(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            piece = self._read(size - len(content))
            if not piece:
                raise CacheRefused("the archive is cut short")
            content += piece
        return content


def decode_header(block: bytes) -> Header | None:
    """A header block; None for the zeros that end an archive."""
    if not any(block):
        return None
    checksum = _OCTAL.fullmatch(block[148:156])
    blanked = block[:148] + b" " * 8 + block[156:]
    if not checksum or int(checksum[1] or b"0", 8) != sum(blanked):
        raise CacheRefused("not a tar archive, or a damaged one: a header's checksum is wrong")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":  # POSIX; GNU's own format has other things there
        prefix = block[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return Header(
        name=name,
        type=block[156:157],
        size=_number(block[124:136], "size"),
        mode=_number(block[100:108], "mode"),
        mtime_ns=_seconds(block[136:148]) * 10**9,
        link=block[157:257].partition(b"\0")[0],
    )


def decode_pax(content: bytes) -> dict[bytes, bytes]:
    """The records `"%d %s=%s\\n" % (length, keyword, value)` of an extended header."""
    records: dict[bytes, bytes] = {}
    begin = 0
    while begin < len(content):
        match = _PAX_LENGTH.match(content, begin)
        end = begin + int(match[1]) if match else begin
        if not match or not match.end() < end <= len(content) or content[end - 1 : end] != b"\n":
            raise CacheRefused("an extended header is malformed")
        keyword, equals, value = content[match.end() : end - 1].partition(b"=")
        if not keyword or not equals:
            raise CacheRefused("an extended header is malformed")
        if keyword.startswith(b"GNU.sparse"):
            raise CacheRefused("the archive holds a sparse file")
        records[keyword] = value
        begin = end
    return records


def clean_name(name: bytes, limits: Limits) -> tuple[str, ...]:
    """The components of a member's name, as `os` takes them; none leads out of the folder."""
    shown = repr(name[:200])[1:]
    if b"\0" in name:
        raise CacheRefused(f"the name {shown} has a NUL byte")
    if len(name) > limits.name_bytes_max:
        raise CacheRefused(f"the name {shown}... is longer than {limits.name_bytes_max} bytes")
    if name.startswith(b"/"):
        raise CacheRefused(f"{shown} leaves the folder: its name starts with '/'")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise CacheRefused(f"{shown} leaves the folder: its name has a '..'")
    if len(parts) > limits.depth_max:
        raise CacheRefused(f"{shown} is more than {limits.depth_max} folders deep")
    if any(len(part) > limits.part_bytes_max for part in parts):
        raise CacheRefused(f"the name {shown} has a part of over {limits.part_bytes_max} bytes")
    return tuple(os.fsdecode(part) for part in parts)


def clean_link(target: bytes, depth: int) -> str | None:
    """Where a symbolic link leads that is `depth` folders deep; None if that may be outside.

    It may go up first, and then down: where it goes up after a name, that may be another link, and
    above it is what is above where that leads.
    """
    up, down = 0, False
    for part in target.split(b"/"):
        if part == b"..":
            if down:
                return None
            up += 1
        elif part not in (b"", b"."):
            down = True
    if not target or target.startswith(b"/") or b"\0" in target or up > depth:
        return None
    return os.fsdecode(target)


_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_PAX_LENGTH = re.compile(rb"([0-9]{1,6}) ")
_PAX_SIZE = re.compile(rb"[0-9]{1,18}")
_PAX_MTIME = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]{1,40}))?")
_PAX_KEYWORDS = {b"path", b"linkpath", b"size", b"mtime"}
_KINDS = {b"1": "a hard link", b"3": "a device", b"4": "a device"}
_KINDS |= {b"6": "a FIFO", b"S": "a sparse file"}
_MTIME_NS_MAX = (1 << 33) * 10**9  # the years 1697 to 2242: what file systems can hold


def _number(field: bytes, what: str) -> int:
    """Octal digits, or GNU's base-256 for what these can't hold."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field)
    if not match:
        raise CacheRefused(f"a header's {what} is not a number")
    return int(match[1] or b"0", 8)


def _seconds(field: bytes) -> int:
    """A time. Before 1970, GNU's base-256 has a sign."""
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    return _number(field, "mtime")


def _extended(header: Header, extensions: dict[bytes, bytes]) -> Header:
    if b"path" in extensions:
        header = replace(header, name=extensions[b"path"])
    if b"linkpath" in extensions:
        header = replace(header, link=extensions[b"linkpath"])
    if b"size" in extensions:
        if not _PAX_SIZE.fullmatch(extensions[b"size"]):
            raise CacheRefused("an extended header's size is not a number")
        header = replace(header, size=int(extensions[b"size"]))
    if b"mtime" in extensions:
        match = _PAX_MTIME.fullmatch(extensions[b"mtime"])
        if not match:
            raise CacheRefused("an extended header's mtime is not a number")
        nanoseconds = int((match[3] or b"0")[:9].ljust(9, b"0"))
        mtime_ns = int(match[2]) * 10**9 + nanoseconds
        header = replace(header, mtime_ns=-mtime_ns if match[1] else mtime_ns)
    return header


def _member(header: Header, limits: Limits) -> Member:
    shown = repr(header.name[:200])[1:]
    is_folder = header.type == b"5"
    if header.type in (b"\0", b"0") and header.name.endswith(b"/"):
        is_folder = True  # as archives older than POSIX have it
    elif header.type not in (b"\0", b"0", b"2", b"5", b"7"):
        kind = _KINDS.get(header.type, f"of the unknown type {header.type!r}")
        raise CacheRefused(
            f"{shown} is {kind}: only files, folders and symbolic links are restored"
        )
    parts = clean_name(header.name, limits)
    if is_folder and header.size:
        raise CacheRefused(f"the folder {shown} has content")
    if not parts and not is_folder:
        raise CacheRefused("a file has no name")
    is_link = header.type == b"2" and not is_folder
    return Member(
        parts=parts,
        is_folder=is_folder,
        size=0 if is_link else header.size,
        link=_link(header, shown, len(parts) - 1, limits) if is_link else "",
        mode=header.mode & 0o777,
        mtime_ns=max(-_MTIME_NS_MAX, min(header.mtime_ns, _MTIME_NS_MAX)),
    )


def _link(header: Header, shown: str, depth: int, limits: Limits) -> str:
    target = repr(header.link[:200])[1:]
    if len(header.link) > limits.link_bytes_max:
        raise CacheRefused(f"the link {shown} leads to a name that is too long: {target}...")
    link = clean_link(header.link, depth)
    if link is None:
        raise CacheRefused(f"{shown} is a symbolic link that leaves the folder: to {target}")
    return link
