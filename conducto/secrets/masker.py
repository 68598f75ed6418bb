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
_BREAK = re.compile(rb"\r?\n[ \t]{0,16}(?![\r\n])|\r\Z")

Span = tuple[int, int]  # [begin, end) of bytes


class Masker:
    """Masks the secrets `values` in one stream. Several streams need one each: see `another`."""

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
        spans, held = self._forms.look(buffer)
        return self._emitted(buffer, spans, held)

    def flush(self, *, is_cut: bool = False) -> bytes:
        """What was held back: the stream has ended, and the next `feed` begins another one.

        `is_cut`: who printed it was stopped, maybe within a secret. What may be the beginning of
        one, of at least `CUT_BYTES_MIN` bytes, is masked, too.
        """
        spans, begin = self._forms.look(self._held)
        if is_cut and len(self._held) - begin >= CUT_BYTES_MIN:
            spans.append((begin, len(self._held)))
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
    """What is looked for, by its first four bytes: a look takes as long for many as for few."""

    def __init__(self, values: set[str]) -> None:
        encoded = {form for value in values for form in encoded_forms(value)}
        wrapped = {form for form in encoded if len(form) >= WRAPPED_CHARS_MIN}
        printed = {form for value in values for form in printed_forms(value)} | encoded - wrapped
        self.count = len(printed | wrapped)
        self._short = [form for form in printed if len(form) < ANCHOR]
        self._beginnings: set[bytes] = set()  # of less than four bytes, and not the whole form
        self._printed = self._by_word(printed)
        self._wrapped = self._by_word({form[n:] for form in wrapped for n in range(ANCHOR)})
        self._anchors = self._printed.keys() | self._wrapped.keys()

    def _by_word(self, forms: set[bytes]) -> dict[int, tuple[bytes, ...]]:
        """Those of at least four bytes, by these, the longest first."""
        found: dict[int, list[bytes]] = {}
        for form in sorted(forms, key=len, reverse=True):
            self._beginnings.update(form[:length] for length in range(1, min(ANCHOR, len(form))))
            if len(form) >= ANCHOR:
                found.setdefault(_words(form, 0)[0], []).append(form)
        return {word: tuple(each) for word, each in found.items()}

    def look(self, buffer: bytes) -> tuple[list[Span], int]:
        """Where they are, and where the buffer's end begins that may become one; its length if
        none may."""
        spans = [(at, at + len(form)) for form in self._short for at in _places(form, buffer)]
        held = len(buffer)
        for length in range(1, min(ANCHOR, held + 1)):
            if buffer[-length:] in self._beginnings:
                held = len(buffer) - length
        text: _Text | None = None
        joined: _Text | None = None
        for at, word in self._anchored(buffer):
            if word in self._printed:
                text = text or _Text(buffer)
                held = min(held, text.look(self._printed[word], at, spans))
            if word in self._wrapped:
                joined = joined or _Text(buffer, _BREAK)
                held = min(held, joined.look(self._wrapped[word], at, spans))
        return spans, held

    def _anchored(self, buffer: bytes) -> Iterator[tuple[int, int]]:
        """Where in the buffer a form may begin, and the four bytes there."""
        shifts = range(ANCHOR)
        for word in set().union(*(self._anchors.intersection(_words(buffer, n)) for n in shifts)):
            for at in _places(word.to_bytes(ANCHOR, sys.byteorder), buffer):
                yield at, word


class _Text:
    """A buffer without what `breaks` finds."""

    def __init__(self, buffer: bytes, breaks: re.Pattern[bytes] | None = None) -> None:
        self._length = len(buffer)
        self._ends: list[int] = [0]  # of the breaks, in the buffer
        self._starts: list[int] = [0]  # of what is behind them, in `_joined`
        pieces, at = [], 0
        for found in breaks.finditer(buffer) if breaks is not None else ():
            pieces.append(buffer[at : found.start()])
            at = found.end()
            self._starts.append(self._starts[-1] + len(pieces[-1]))
            self._ends.append(at)
        self._joined = b"".join((*pieces, buffer[at:])) if pieces else buffer

    def look(self, forms: tuple[bytes, ...], at: int, spans: list[Span]) -> int:
        """Add those of the forms, the longest first, to `spans` that begin at this byte of the
        buffer. Return where they begin if one of them might, with what follows the buffer; else the
        buffer's length."""
        joined = self._joined
        line = bisect_right(self._ends, at) - 1
        begin = self._starts[line] + at - self._ends[line]
        if joined.startswith(forms, begin):
            for form in forms:
                if joined.startswith(form, begin):
                    end = begin + len(form)
                    line = bisect_right(self._starts, end - 1) - 1
                    spans.append((at, self._ends[line] + end - self._starts[line]))
        left = len(joined) - begin
        if len(forms[0]) > left:
            rest = joined[begin:]
            if any(len(form) > left and form.startswith(rest) for form in forms):
                return at
        return self._length


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


def _places(form: bytes, buffer: bytes) -> Iterator[int]:
    """Where it is, also where it overlaps itself."""
    at = buffer.find(form)
    while at >= 0:
        yield at
        at = buffer.find(form, at + 1)
