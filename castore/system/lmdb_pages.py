"""LMDB's file, page by page, read with no trust in it and without LMDB.

LMDB trusts its pages: one damaged page can end the process that looks at it, or hides all that is
behind it. Here every number is checked before it is used, a page that can't be read costs only the
keys that it holds, and which these are is said. So this is what an index is rebuilt from, what a
backup is restored from, and what a check of the pages themselves is made with: the list of free
pages, too, which no row shows, and from which LMDB takes the pages that it writes next.

The layout is that of LMDB 0.9 (`lib_version=0`), on a machine with 64-bit words:

    page    u64 its number, u16 0, u16 flags, then u16 lower, u16 upper (or u32 pages of overflow),
            then a u16 for each node: where in the page it is
    node    u16 low, u16 high, u16 flags, u16 key bytes, key, then of a leaf the value, whose size
            is low | high << 16, or if the flag 1 is set the number of its overflow page; of a
            branch low | high << 16 | flags << 32 is the page below
    meta    u32 magic, u32 version, u64, u64, two tables (free pages; the names of the others),
            u64 last page, u64 transaction
    table   u32 (of the first: bytes of a page), u16 flags, u16 depth, u64 branch pages, u64 leaf
            pages, u64 overflow pages, u64 entries, u64 root (all ones: none)
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from castore.errors import IndexCorrupt, index_lost
from castore.system.fileio import descriptor
from castore.wording import counted

MAGIC: Final = 0xBEEFC0DE
BRANCH: Final = 1
LEAF: Final = 2
OVERFLOW: Final = 4
KINDS: Final = 0x6F  # all flags but the one that is of memory alone
BIG: Final = 1  # of a node: its value is on overflow pages
TABLE_NODE: Final = 2  # of a node: its value is a table
NONE: Final = (1 << 64) - 1
DEPTH_MAX: Final = 32

HEADER: Final = struct.Struct("<QHHHH")
OVERFLOW_HEADER = struct.Struct("<QHHI")
NODE = struct.Struct("<HHHH")
TABLE = struct.Struct("<IHHQQQQQ")
_META = struct.Struct(f"<IIQQ{TABLE.size}s{TABLE.size}sQQ")
META_BYTES: Final = _META.size


class PageTable(NamedTuple):
    """One of LMDB's tables: the root of its tree, how deep that is, and whether its keys are
    numbers, as those of the free pages are: they are sorted as such. `overflow_pages` are those of
    large values."""

    depth: int
    overflow_pages: int
    entries: int
    root: int
    by_number: bool = False

    def place(self, key: bytes) -> bytes:
        """What keys are sorted by."""
        return key[::-1] if self.by_number else key

    @classmethod
    def decode(cls, raw: bytes) -> PageTable:
        """Raises struct.error unless it is of TABLE.size bytes."""
        _, _, depth, _, _, overflow_pages, entries, root = TABLE.unpack(raw)
        return cls(depth, overflow_pages, entries, root)


class Meta(NamedTuple):
    """The state that a transaction left: what is free, which tables there are, the last page."""

    txn_id: int
    page_bytes: int
    last_page: int
    free: PageTable
    main: PageTable
    raw: bytes


class Lost(NamedTuple):
    """Keys of a table in `[begin, end)` that can't be read; `end` is None for those to the end."""

    begin: bytes
    end: bytes | None
    reason: str


class IndexPages:
    """The pages of the index in the first `size` bytes of a descriptor.

    `lost` fills as tables are walked. Raises IndexCorrupt if the file has no meta page.
    """

    def __init__(self, fd: int, path: str, size: int | None = None) -> None:
        self._fd = fd
        self._path = path
        self.size = os.fstat(fd).st_size if size is None else size
        self.meta = newest_meta(fd, path, self.size)
        self.visited: set[int] = set()
        self.lost: list[Lost] = []
        self._ends_early = False

    # ------------------------------------------------------------ tables and rows

    def tables(self) -> dict[bytes, PageTable]:
        """Those that can be found. What is wrong with the pages that list them is in `lost`."""
        found = {}
        for name, flags, value in self._nodes(self.meta.main):
            if flags & TABLE_NODE and len(value) == TABLE.size:
                found[name] = PageTable.decode(value)
        return found

    def rows(self, table: PageTable) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of all rows that can be read, in order."""
        for key, _, value in self._nodes(table):
            yield key, value

    def _nodes(self, table: PageTable) -> Iterator[tuple[bytes, int, bytes]]:
        if table.root == NONE:
            return
        count, before = 0, len(self.lost)
        overflow_pages: list[int] = []  # of each large value
        if not 0 < table.depth <= DEPTH_MAX:
            self.lost.append(Lost(b"", None, f"a tree of depth {table.depth}"))
            return
        for leaf, begin, end in self._leaves(table, table.root, table.depth, b"", None):
            for node in self._leaf(table, leaf, begin, end, overflow_pages):
                count += 1
                yield node
        if count != table.entries and len(self.lost) == before:
            reason = f"a table of {counted(table.entries, 'row')} has {count:,}"
            self.lost.append(Lost(b"", None, reason))
        elif sum(overflow_pages) != table.overflow_pages and len(self.lost) == before:
            pages = counted(sum(overflow_pages), "page")
            reason = f"large values have {pages}, not {table.overflow_pages:,}"
            self.lost.append(Lost(b"", b"", reason))

    def _leaves(
        self, table: PageTable, number: int, depth: int, begin: bytes, end: bytes | None
    ) -> Iterator[tuple[bytes, bytes, bytes | None]]:
        """(page, first key, end) of every leaf below a page, in order."""
        try:
            page = self._page(number, LEAF if depth == 1 else BRANCH)
        except IndexCorrupt as error:
            self.lost.append(Lost(begin, end, str(error)))
            return
        if depth == 1:
            yield page, begin, end
            return
        below = []
        for at in self._places(page):
            low, high, flags, key_bytes = NODE.unpack_from(page, at)
            key = page[at + NODE.size : at + NODE.size + key_bytes]
            below.append((key, low | high << 16 | flags << 32))
        below[:1] = [(begin, below[0][1])] if below else []
        ends = [*(key for key, _ in below[1:]), end]
        place = table.place
        for (key, child), until in zip(below, ends, strict=True):
            if place(key) < place(begin) or (until is not None and place(key) >= place(until)):
                self.lost.append(Lost(key, until, f"page {number} is not in order"))
                continue
            yield from self._leaves(table, child, depth - 1, key, until)

    def _leaf(
        self,
        table: PageTable,
        page: bytes,
        begin: bytes,
        end: bytes | None,
        overflow_pages: list[int],
    ) -> Iterator[tuple[bytes, int, bytes]]:
        place, last = table.place, None
        first, limit = place(begin), None if end is None else place(end)
        for at in self._places(page):
            low, high, flags, key_bytes = NODE.unpack_from(page, at)
            size = low | high << 16
            at += NODE.size
            key = page[at : at + key_bytes]
            at += key_bytes
            at_place = place(key)
            out = at_place < first or (limit is not None and at_place >= limit)
            if out or len(key) != key_bytes:
                self.lost.append(Lost(last or begin, end, "a key out of its place"))
                continue
            if last is not None and at_place <= place(last):
                self.lost.append(Lost(last, end, "keys that are not in order"))
                continue
            last = key
            try:
                if flags & BIG:
                    value, pages = self._overflow(page, at, size)
                    overflow_pages.append(pages)
                else:
                    value = page[at : at + size]
                if len(value) != size:
                    raise IndexCorrupt(f"a value of {size} bytes is cut short")
            except IndexCorrupt as error:
                self.lost.append(Lost(key, key + b"\0", str(error)))
                continue
            yield key, flags, value

    def _overflow(self, page: bytes, at: int, size: int) -> tuple[bytes, int]:
        """A large value, and how many pages it has. They may be more than it needs: LMDB writes a
        smaller value over a larger one in its place."""
        raw = page[at : at + 8]
        number = int.from_bytes(raw, "little")
        head = self._read(number)
        pages = int.from_bytes(head[12:16], "little")
        flags = int.from_bytes(head[10:12], "little") & KINDS
        if len(raw) != 8 or flags != OVERFLOW or head[:8] != raw:
            raise IndexCorrupt(f"page {number} is none of a large value")
        needed = -(-(size + HEADER.size) // self.meta.page_bytes)
        if not needed <= pages <= self.meta.last_page + 1 - number:
            raise IndexCorrupt(
                f"page {number} has {counted(pages, 'page')} of a value of {size:,} bytes"
            )
        if any(number + i in self.visited for i in range(pages)):
            raise IndexCorrupt(f"page {number} is in use twice")
        self.visited.update(range(number, number + pages))
        begin = number * self.meta.page_bytes
        if begin + HEADER.size + size > self.size:
            self._ends_early = True
            raise IndexCorrupt(f"the file ends before page {number + pages - 1}")
        return os.pread(self._fd, size, begin + HEADER.size), pages

    # ------------------------------------------------------------ free pages

    def free_pages(self) -> Iterator[int]:
        """Those that LMDB may write to next. Raises IndexCorrupt if a list of them is damaged."""
        before = len(self.lost)
        for key, value in self.rows(self.meta.free):
            ids = array("Q", value) if len(value) % 8 == 0 else array("Q")
            if len(key) != 8 or not ids or ids[0] != len(ids) - 1:
                raise IndexCorrupt("a list of free pages is damaged")
            if not 0 < int.from_bytes(key, "little") <= self.meta.txn_id:
                raise IndexCorrupt("a list of free pages is of no transaction")
            if any(ids[i] <= ids[i + 1] for i in range(1, len(ids) - 1)):
                raise IndexCorrupt("a list of free pages is not in order")
            yield from ids[1:]
        if len(self.lost) > before:
            raise IndexCorrupt(f"the list of free pages can't be read: {self.lost[-1].reason}")

    def fault(self) -> str:
        """What is wrong with the pages, whatever the rows hold; "" if nothing is."""
        tables = [self.meta.main, *self.tables().values()]
        self.visited.clear()
        for table in tables:
            for _ in self.rows(table):
                """Each page is looked at, and noted."""
        if self.lost:
            return self.lost[0].reason
        try:
            free = list(self.free_pages())
        except IndexCorrupt as error:
            return str(error)
        taken = set(free)
        if len(taken) != len(free) or not taken.isdisjoint(self.visited):
            return "a page is both free and in use"
        if free and not 2 <= min(taken) <= max(taken) <= self.meta.last_page:
            return "a page is free that is none"
        return ""

    def is_long_enough(self) -> bool:
        """Whether the file has every page that a table leads to."""
        if (self.meta.last_page + 1) * self.meta.page_bytes <= self.size:
            return True
        self.fault()
        return not self._ends_early

    # ------------------------------------------------------------ pages

    def _page(self, number: int, kind: int) -> bytes:
        """A page of a tree, once. What it is, its place says: of one whose own word for it is
        damaged the rest may be whole."""
        if number in self.visited:
            raise IndexCorrupt(f"page {number} is in use twice")
        page = self._read(number)
        own, _, flags, lower, upper = HEADER.unpack_from(page)
        if not HEADER.size <= lower <= upper <= len(page) or lower % 2:
            raise IndexCorrupt(f"page {number} is damaged")
        self.visited.add(number)
        if own != number or flags & KINDS != kind:
            # Kept apart from what is lost for certain: no key is missing because of it.
            self.lost.append(Lost(b"", b"", f"the head of page {number} is damaged"))
        return page

    def _places(self, page: bytes) -> list[int]:
        """Where the nodes of a page are; those that would be outside of it are left out."""
        lower, upper = HEADER.unpack_from(page)[3:]
        places = places_of(page, lower)
        right = [at for at in places if upper <= at <= len(page) - NODE.size]
        if len(right) != len(places):
            self.lost.append(Lost(b"", None, "a page with nodes outside of it"))
        return right

    def _read(self, number: int) -> bytes:
        page_bytes = self.meta.page_bytes
        if not 2 <= number <= self.meta.last_page:
            raise IndexCorrupt(f"there is no page {number}")
        if (number + 1) * page_bytes > self.size:
            self._ends_early = True
            raise IndexCorrupt(f"the file ends before page {number}")
        page = os.pread(self._fd, page_bytes, number * page_bytes)
        if len(page) != page_bytes:
            raise IndexCorrupt(f"there is no page {number}")
        return page


def places_of(page: bytes, lower: int) -> tuple[int, ...]:
    """Where the nodes of a page are, whose header is of this `lower`, in the order of keys."""
    return struct.unpack_from(f"<{(lower - HEADER.size) // 2}H", page, HEADER.size)


def newest_meta(fd: int, path: str, size: int) -> Meta:
    """What the last commit left. Raises IndexCorrupt if the first `size` bytes do not say."""
    found = []
    for page_bytes in (4096, 8192, 16384, 32768, 65536):
        for at in (0, page_bytes):
            meta = _meta(fd, at, size)
            if meta is not None and meta.page_bytes == page_bytes:
                found.append(meta)
        if found:
            return max(found, key=lambda meta: meta.txn_id)
    raise index_lost(f"the index {path} is damaged (it has no meta page)")


def _meta(fd: int, at: int, size: int) -> Meta | None:
    if at + HEADER.size + _META.size > size:
        return None
    raw = os.pread(fd, _META.size, at + HEADER.size)
    if len(raw) != _META.size:
        return None
    magic, version, _, _, free, main, last_page, txn_id = _META.unpack(raw)
    if magic != MAGIC or version != 1:
        return None
    page_bytes: int = TABLE.unpack(free)[0]
    freed = PageTable.decode(free)._replace(by_number=True)
    return Meta(txn_id, page_bytes, last_page, freed, PageTable.decode(main), raw)


def check_length(path: str) -> None:
    """Raises IndexCorrupt if the index in the folder `path` was cut short: LMDB would read behind
    the end of its file, which ends the process (SIGBUS)."""
    with descriptor(os.path.join(path, "data.mdb")) as fd:
        while True:
            pages = IndexPages(fd, path)
            # The last pages may have been freed before they were ever written: then no table
            # leads there. That is seldom, and all pages are looked at to find out.
            if pages.is_long_enough():
                return
            again = IndexPages(fd, path)
            # Its size is of after what `pages` read: a commit that came between makes it longer.
            if (again.meta.txn_id, again.size) == (pages.meta.txn_id, pages.size):
                raise index_lost(
                    f"the index {path} is damaged (it was cut short at {again.size} bytes)"
                )
