"""A filter for what a program prints: bytes in, the same bytes out with `***` for each secret.

Every byte that lies in an occurrence of a secret, in any of its forms, is masked, and `***` stands
for a whole run of such bytes. The output does not depend on how the input is cut into blocks. What
is held back is the shortest end of the input that might become a secret with what follows, and no
more, so that a line is not delayed unless it ends as a secret begins.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from conducto.secrets.forms import encoded_forms, printed_forms

MASK = b"***"
CUT_BYTES_MIN = 8  # less says little, and may well be something else

# Encoded forms this long are also found where a program broke them into lines. In front of the
# first break there are at least `ANCHOR` characters of what is found: fewer would hold back every
# line that ends with the form's first letter. So up to three characters, 18 bits, may be left.
WRAPPED_CHARS_MIN = 12
ANCHOR = 4  # bytes, as memoryview's "I" has
PLACE_BYTES = 1000  # how many bytes are searched for one form while one place is looked at
_BREAK = re.compile(rb"\r?\n[ \t]{0,16}(?![\r\n])|\r\Z")

Span = tuple[int, int]  # [begin, end) of bytes


class Masker:
    """Masks the secrets `values` in one stream. Several streams need one each: see `another`."""

    _anchors: set[int]  # those in what is held

    def __init__(self, values: Iterable[str]) -> None:
        self._forms = _Forms(set(values))
        self._reset()

    def __repr__(self) -> str:
        return f"<Masker of {self._forms.count} forms>"

    def another(self) -> Masker:
        """One for another stream, of the same secrets."""
        other = Masker(())
        other._forms = self._forms
        return other

    def feed(self, data: bytes) -> bytes:
        """What can be said of the stream so far, and was not said before."""
        if not self._forms.count:
            return data  # most pipelines have no secrets, and some print much
        buffer = self._held + data
        self._anchors |= self._forms.anchors(buffer, len(self._held))
        spans, held = self._forms.look(buffer, self._anchors)
        shown = self._emitted(buffer, spans, held)
        self._anchors = {each for each in self._anchors if _raw(each) in self._held}
        return shown

    def flush(self, *, is_cut: bool = False) -> bytes:
        """What was held back: the stream has ended, and the next `feed` begins another one.

        `is_cut`: who printed it was stopped, maybe within a secret. What may be the beginning of
        one, of at least `CUT_BYTES_MIN` bytes, is masked, too.
        """
        spans, begin = self._forms.look(self._held, self._anchors)
        if is_cut and len(self._held) - begin >= CUT_BYTES_MIN:
            spans.append((begin, len(self._held)))
        rest = self._emitted(self._held, spans, len(self._held))
        self._reset()
        return rest

    def _reset(self) -> None:
        self._held = b""
        self._anchors = set()
        self._covered = 0  # so many bytes of `_held` are masked, and their mask was given out
        self._in_mask = False  # the last that was given out is a mask

    def _emitted(self, buffer: bytes, spans: list[Span], keep: int) -> bytes:
        """The bytes before `keep`, masked; the others are held."""
        self._held = buffer[keep:]
        if not keep:
            return b""
        if self._covered:
            spans = [*spans, (0, self._covered)]
        pieces, at, in_mask, covered = [], 0, False, 0
        for begin, end in _merged(spans):
            if begin >= keep:
                break
            pieces.append(buffer[at:begin])
            if begin or not self._in_mask:
                pieces.append(MASK)
            at, in_mask, covered = min(end, keep), end >= keep, max(end - keep, 0)
        pieces.append(buffer[at:keep])
        self._in_mask, self._covered = in_mask, covered
        return b"".join(pieces)


class _Forms:
    """What is looked for, by its first four bytes, its anchor: a look takes as long for many as for
    few. Where there is an anchor at every turn, each form is looked for by itself."""

    def __init__(self, values: set[str]) -> None:
        encoded = {form for value in values for form in encoded_forms(value)}
        wrapped = {form for form in encoded if len(form) >= WRAPPED_CHARS_MIN}
        printed = {form for value in values for form in printed_forms(value)} | encoded - wrapped
        self.count = len(printed | wrapped)
        self._short = [form for form in printed if len(form) < ANCHOR]
        self._beginnings: set[bytes] = set()  # of less than four bytes, and not the whole form
        self._printed = self._by_anchor(printed)
        self._wrapped = self._by_anchor({form[n:] for form in wrapped for n in range(ANCHOR)})
        self._anchors = self._printed.keys() | self._wrapped.keys()

    def _by_anchor(self, forms: set[bytes]) -> dict[int, tuple[bytes, ...]]:
        """Those of at least four bytes, by these, the longest first."""
        found: dict[int, list[bytes]] = {}
        for form in sorted(forms, key=len, reverse=True):
            self._beginnings.update(form[:length] for length in range(1, min(ANCHOR, len(form))))
            if len(form) >= ANCHOR:
                found.setdefault(_words(form, 0)[0], []).append(form)
        return {word: tuple(each) for word, each in found.items()}

    def anchors(self, buffer: bytes, begin: int) -> set[int]:
        """Those in the buffer that end behind `begin`."""
        first = max(begin - ANCHOR + 1, 0)
        shifts = range(first, first + ANCHOR)
        return set().union(*(self._anchors.intersection(_words(buffer, n)) for n in shifts))

    def look(self, buffer: bytes, anchors: set[int]) -> tuple[list[Span], int]:
        """Where they are, and where the buffer's end begins that may become one; its length if
        none may. `anchors` are all that are in the buffer."""
        spans: list[Span] = []
        held = len(buffer)
        for length in range(1, min(ANCHOR, held + 1)):
            if buffer[-length:] in self._beginnings:
                held = len(buffer) - length
        text = _Text(buffer)
        joined: _Text | None = None
        for form in self._short:
            text.find(form, spans)
        for anchor in anchors:
            places = buffer.count(_raw(anchor))
            if places and anchor in self._printed:
                held = min(held, text.look(self._printed[anchor], places, spans))
            if places and anchor in self._wrapped:
                joined = joined or _Text(buffer, _BREAK)
                held = min(held, joined.look(self._wrapped[anchor], places, spans))
        return spans, held


class _Text:
    """A buffer without what `breaks` finds. Places are counted in it; spans are of the buffer."""

    def __init__(self, buffer: bytes, breaks: re.Pattern[bytes] | None = None) -> None:
        self._buffer = buffer
        self._ends: list[int] = [0]  # of the breaks, in the buffer
        self._starts: list[int] = [0]  # of what is behind them, in `_joined`
        pieces, at = [], 0
        for found in breaks.finditer(buffer) if breaks is not None else ():
            pieces.append(buffer[at : found.start()])
            at = found.end()
            self._starts.append(self._starts[-1] + len(pieces[-1]))
            self._ends.append(at)
        self._joined = b"".join((*pieces, buffer[at:])) if pieces else buffer

    def look(self, forms: tuple[bytes, ...], places: int, spans: list[Span]) -> int:
        """Add to `spans` where the forms are, of which the longest comes first, and all begin
        alike. Return where in the buffer one of them begins that what follows may make whole; else
        the buffer's length. `places`: how often that beginning is there, about."""
        joined, anchor = self._joined, forms[0][:ANCHOR]
        if places * PLACE_BYTES > len(joined) * len(forms):
            for form in forms:
                self.find(form, spans)
        else:
            for begin in _places(anchor, joined):
                if joined.startswith(forms, begin) and self._is_whole(begin):
                    form = next(each for each in forms if joined.startswith(each, begin))
                    spans.append(self._span(begin, begin + len(form)))
        for begin in _places(anchor, joined, len(joined) - len(forms[0]) + 1):
            rest = joined[begin:]
            for form in forms:
                if len(form) <= len(rest):
                    break
                if form.startswith(rest) and self._is_whole(begin):
                    return self._span(begin, begin + 1)[0]
        return len(self._buffer)

    def find(self, form: bytes, spans: list[Span]) -> None:
        """Add to `spans` where it is. Of those that overlap the last is enough."""
        joined, size = self._joined, len(form)
        begin = joined.find(form)
        while begin >= 0:
            if not self._is_whole(begin):
                begin = joined.find(form, begin + 1)
                continue
            spans.append(self._span(begin, begin + size))
            last = joined.rfind(form, begin + 1, begin + 2 * size - 1)
            while last >= 0 and not self._is_whole(last):
                last = joined.rfind(form, begin + 1, last + size - 1)
            begin = last if last >= 0 else joined.find(form, begin + size)

    def _is_whole(self, begin: int) -> bool:
        """Whether no break is in the four bytes there."""
        starts = self._starts
        return len(starts) == 1 or (
            bisect_right(starts, begin) == bisect_right(starts, begin + ANCHOR - 1)
        )

    def _span(self, begin: int, end: int) -> Span:
        return self._place(begin), self._place(end - 1) + 1

    def _place(self, at: int) -> int:
        """Where this byte is in the buffer."""
        line = bisect_right(self._starts, at) - 1
        return self._ends[line] + at - self._starts[line]


def _merged(spans: list[Span]) -> list[Span]:
    """Sorted, and no two of them touch."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def _words(buffer: bytes, shift: int) -> memoryview[int]:
    """Each four bytes as a number, from `shift` on."""
    count = max(len(buffer) - shift, 0) // ANCHOR
    return memoryview(buffer)[shift : shift + count * ANCHOR].cast("I")


def _raw(word: int) -> bytes:
    return word.to_bytes(ANCHOR, sys.byteorder)


def _places(form: bytes, text: bytes, begin: int = 0) -> Iterator[int]:
    """Where it is from there on, also where it overlaps itself."""
    at = text.find(form, max(begin, 0))
    while at >= 0:
        yield at
        at = text.find(form, at + 1)
