"""What a secret looks like where programs print it: as it is, quoted for a shell, a URL or a page,
inside JSON, in base64 or in hexadecimal.

A secret that was hashed, encrypted, reversed or cut in pieces is none of these.
"""

from __future__ import annotations

from collections.abc import Iterator

LINE_BYTES_MIN = 8  # a shorter line of a secret, such as `}`, is masked only within the whole
HEX_BYTES_MIN = 4  # of a value whose digits are looked for
BASE64_CHARS_MIN = 6  # of what is looked for inside the base64 of more than the secret


def printed_forms(value: str) -> set[bytes]:
    """What a program prints in one piece: the value, parts of it that say enough, and its quoted
    forms."""
    import html
    import json
    from urllib.parse import quote, quote_plus

    texts = {value, value.strip(), " ".join(value.split())}  # `echo $VALUE` has the last
    texts |= {
        line for each in value.splitlines() if len(_raw(line := each.strip())) >= LINE_BYTES_MIN
    }
    texts |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    texts |= {repr(value)[1:-1], ascii(value)[1:-1]}
    texts |= {*_shell_quoted(value), value.replace("\n", "\r\n")}
    texts |= {html.escape(value), html.escape(value, quote=False)}
    texts.add(html.escape(value).replace("&#x27;", "&#39;"))
    quoted = {quote_plus(_raw(value))}
    quoted |= {quote(_raw(value), safe=safe) for safe in ("", "/", "!'()*", "!'()*/")}
    texts |= quoted | {_lower_escapes(each) for each in quoted}
    return {_raw(text) for text in texts if text}


def encoded_forms(value: str) -> set[bytes]:
    """What is printed in letters that programs break into lines: base64, by itself and inside that
    of more (`user:password`), and hexadecimal."""
    from base64 import b64encode

    found: set[bytes] = set()
    for raw in {_raw(value), _raw(value.strip())} - {b""}:
        whole = {b64encode(raw), *_inner_base64(raw)}
        found |= whole | {each.translate(_URL_SAFE) for each in whole}
        if len(raw) >= HEX_BYTES_MIN:
            found |= {raw.hex().encode(), raw.hex().upper().encode()}
    return found


def _shell_quoted(value: str) -> Iterator[str]:
    """As shells print it: traces, `set`, `export -p` and `printf %q`; and Python's shlex."""
    import re

    yield value.replace("'", "'\\''")
    yield value.replace("'", "'\"'\"'")
    yield re.sub(r'(["$`\\])', r"\\\1", value)
    yield re.sub(r"([^\w@%+=:,./-])", r"\\\1", value, flags=re.ASCII)
    for special, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\t", "\\t")):
        value = value.replace(special, escaped)
    yield value


def _inner_base64(raw: bytes) -> Iterator[bytes]:
    """The characters that depend on these bytes alone, for each place where they may begin."""
    from base64 import b64encode

    for before in range(3):
        first, behind = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        inner = b64encode(bytes(before) + raw)[first:behind]
        if len(inner) >= BASE64_CHARS_MIN:
            yield inner


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def _lower_escapes(quoted: str) -> str:
    import re

    return re.sub("%[0-9A-F]{2}", lambda escape: escape[0].lower(), quoted)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
