"""Count the words of a large text, part by part.

    python docs/examples/wordcount.py --path=book.txt --run

How many nodes there are depends on how large the text is, which is known when it is staged: so they
are made by a Lazy. Each reads its own byte range of the one object.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import conducto as co

PART_BYTES = 1 << 20
WORD_BYTES_MAX = 4096  # how far a part looks for the end of its last word


def pipeline(path: str = __file__, part_bytes: int = PART_BYTES) -> co.Serial:
    """Stage a text, count the words of its parts at once, add the counts up."""
    root = co.Serial(doc=co.util.magic_doc())
    root["stage"] = co.Exec(stage, str(Path(path).resolve()))
    root["count"] = co.Lazy(parts, part_bytes)
    root["total"] = co.Exec(total)
    return root


def stage(path: str) -> None:
    co.data.pipeline.put("text", path)


def parts(part_bytes: int) -> co.Parallel:
    """A node for each part of the text."""
    size = co.data.pipeline.size("text")
    tree = co.Parallel()
    for begin in range(0, size, part_bytes):
        tree[f"from {begin}"] = co.Exec(count, begin, min(begin + part_bytes, size))
    return tree


def count(begin: int, end: int) -> None:
    """Count the words that begin in [begin, end)."""
    before = max(begin - 1, 0)
    text = co.data.pipeline.gets("text", byte_range=[before, end + WORD_BYTES_MAX])
    words = Counter()
    at = 0
    for word in text.split():
        at = text.index(word, at)
        began_before = before + at < begin and begin > 0
        if not began_before and before + at < end:
            words[word.decode("utf-8", "replace").strip(".,;:!?\"'()").lower()] += 1
        at += len(word)
    co.data.pipeline.puts(f"counts/{begin:015}", json.dumps(words).encode())
    print(sum(words.values()), "words")


def total(most: int = 3) -> None:
    words = Counter()
    for name in co.data.pipeline.list("counts/"):
        words.update(json.loads(co.data.pipeline.gets(name)))
    print(sum(words.values()), "words")
    for word, times in sorted(words.items(), key=lambda item: (-item[1], item[0]))[:most]:
        print(word, times)


if __name__ == "__main__":
    co.main(default=pipeline)
