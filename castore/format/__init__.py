"""The layouts of bytes, all of them: FORMAT.md in code, a module for each kind of bytes.

Integers are little endian, but for keys of LMDB, which are big endian so that they sort.
Decoders take untrusted bytes: each length is checked before anything is allocated from it, and
malformed bytes raise FormatError, those of a newer version UnsupportedFormat, and nothing else.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = 1  # of each layout that says no other
CHUNK_BYTES_LIMIT: Final = 16 << 20  # no config may ask for larger chunks than this
