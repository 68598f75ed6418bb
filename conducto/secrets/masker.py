"""A filter for what a program prints: bytes in, the same bytes out with `***` for each secret.

Every byte that lies in an occurrence of a secret, in any of its forms, is masked, and `***` stands
for a whole run of such bytes. The output does not depend on how the input is cut into blocks. What
is held back is the shortest end of the input that might become a secret with what follows, and no
more, so that a line is not delayed unless it ends as a secret begins.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from conducto.secrets.forms import encoded_forms, printed_forms

MASK = b"***"

# Encoded forms this long are also found where a program broke them into lines. In front of the
# first break there are at least `ANCHOR` characters of what is found: fewer would hold back every
# line that ends with the form's first letter. So up to three characters, 18 bits, may be left.
WRAPPED_CHARS_MIN = 12
ANCHOR = 4
_BREAK = re.compile(rb"\r?\n[ \t]{0,16}(?![\r\n])|\r\Z")

Span = tuple[int, int]  # [begin, end) of bytes


class Masker:
    """Masks the secrets `values` in one stream. Several streams need one each: see `another`."""

    def __init__(self, values: Iterable[str]) -> None:
        given = set(values)
        printed = {form for value in given for form in printed_forms(value)}
        encoded = {form for value in given for form in encoded_forms(value)}
        self._wrapped = sorted(form for form in encoded if len(form) >= WRAPPED_CHARS_MIN)
        self._printed = sorted(printed | encoded.difference(self._wrapped))
        self._reset()

    def __repr__(self) -> str:
        return f"<Masker of {len(self._printed) + len(self._wrapped)} forms>"

    def another(self) -> Masker:
        """One for another stream, of the same secrets."""
        other = Masker(())
        other._printed, other._wrapped = self._printed, self._wrapped
        return other

    def feed(self, data: bytes) -> bytes:
        """What can be said of the stream so far, and was not said before."""
        buffer = self._held + data
        lines = _Unbroken(buffer) if self._wrapped else None
        spans = self._spans(buffer, lines)
        keep = min(self._held_from(buffer, lines), len(buffer))
        return self._emitted(buffer, spans, keep)

    def flush(self) -> bytes:
        """What was held back: the stream has ended, and the next `feed` begins another one."""
        spans = self._spans(self._held, _Unbroken(self._held) if self._wrapped else None)
        rest = self._emitted(self._held, spans, len(self._held))
        self._reset()
        return rest

    def _reset(self) -> None:
        self._held = b""
        self._covered = 0  # so many bytes of `_held` are masked, and their mask was given out
        self._in_mask = False  # the last that was given out is a mask

    def _emitted(self, buffer: bytes, spans: list[Span], keep: int) -> bytes:
        """The bytes before `keep`, masked; the others are held."""
        self._held = buffer[keep:]
        if not keep:
            return b""
        pieces, at, in_mask = [], 0, False
        covered = 0
        for begin, end in spans:
            if begin >= keep:
                break
            pieces.append(buffer[at:begin])
            if begin or not self._in_mask:
                pieces.append(MASK)
            at = min(end, keep)
            in_mask = end >= keep
            covered = max(end - keep, 0)
        pieces.append(buffer[at:keep])
        self._in_mask, self._covered = in_mask, covered
        return b"".join(pieces)

    def _spans(self, buffer: bytes, lines: _Unbroken | None) -> list[Span]:
        """What is to be masked: sorted, and no two touch."""
        found = [(0, self._covered)] if self._covered else []
        for form in self._printed:
            found += [(at, at + len(form)) for at in _places(form, buffer)]
        if lines is not None:
            for form in self._wrapped:
                found += lines.spans(form)
        merged: list[Span] = []
        for begin, end in sorted(found):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((begin, end))
        return merged

    def _held_from(self, buffer: bytes, lines: _Unbroken | None) -> int:
        held = len(buffer)
        for form in self._printed:
            held = min(held, _begun(form, buffer))
        if lines is not None and self._wrapped:
            reach = lines.reach(max(map(len, self._wrapped)))
            for form in self._wrapped:
                held = min(held, lines.begun(form, reach))
        return held


class _Unbroken:
    """A buffer with and without its line breaks."""

    def __init__(self, buffer: bytes) -> None:
        self.buffer = buffer
        self.joined = buffer
        self._breaks: list[int] = []  # where they were in `joined`
        self._removed: list[int] = [0]  # bytes of all breaks before
        if b"\n" in buffer or buffer.endswith(b"\r"):
            self._remove()

    def _remove(self) -> None:
        pieces, at = [], 0
        for found in _BREAK.finditer(self.buffer):
            pieces.append(self.buffer[at : found.start()])
            self._breaks.append(found.start() - self._removed[-1])
            at = found.end()
            self._removed.append(self._removed[-1] + at - found.start())
        self.joined = b"".join((*pieces, self.buffer[at:]))

    def place(self, at: int) -> int:
        """Where the byte `at` of `joined` is in the buffer."""
        return at + self._removed[bisect_right(self._breaks, at)]

    def spans(self, form: bytes) -> Iterator[Span]:
        """Where it is, or all of it but up to three characters before a line's end."""
        tail = form[ANCHOR - 1 :]
        for at in _places(tail, self.joined):
            end = self.place(at + len(tail) - 1) + 1
            for more in range(ANCHOR - 1, -1, -1):
                begin = at - more
                if begin < 0 or self.joined[begin:at] != form[ANCHOR - 1 - more : ANCHOR - 1]:
                    continue
                if self.place(begin + ANCHOR - 1) - self.place(begin) == ANCHOR - 1:
                    yield self.place(begin), end
                    break

    def reach(self, length: int) -> int:
        """Where the last `length` bytes of `joined` begin in the buffer."""
        return self.place(max(0, len(self.joined) - length))

    def begun(self, form: bytes, reach: int) -> int:
        """Where the buffer's end begins that may become what `spans` finds, or its length."""
        held = len(self.buffer)
        for skipped in range(ANCHOR):
            wanted = form[skipped:]
            for at in _places(wanted[:ANCHOR], self.buffer, reach, held):
                rest = _BREAK.sub(b"", self.buffer[at:])
                if len(rest) < len(wanted) and wanted.startswith(rest):
                    held = at
                    break
            held = min(held, _begun_shortly(wanted, self.buffer))
        return held


def _places(form: bytes, buffer: bytes, begin: int = 0, end: int | None = None) -> Iterator[int]:
    """Where it is in the buffer, also where it overlaps itself."""
    at = buffer.find(form, begin, end)
    while at >= 0:
        yield at
        at = buffer.find(form, at + 1, end)


def _begun(form: bytes, buffer: bytes) -> int:
    """Where the longest end of the buffer begins that is a beginning of the form but not all of it;
    or the buffer's length."""
    if len(form) > ANCHOR:
        for at in _places(form[:ANCHOR], buffer, max(0, len(buffer) - len(form) + 1)):
            if form.startswith(buffer[at:]):
                return at
    return _begun_shortly(form, buffer)


def _begun_shortly(form: bytes, buffer: bytes) -> int:
    """The same of ends of less than `ANCHOR` bytes."""
    for length in range(min(ANCHOR, len(form)) - 1, 0, -1):
        if buffer.endswith(form[:length]):
            return len(buffer) - length
    return len(buffer)
