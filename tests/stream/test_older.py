"""Which names an object to be put is looked for under, to be a delta of what is there."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import pytest

from castore.stream.older import candidates, folders_before


def looked_for(
    name: str, there: list[str], like: str | None = None, *, beside: bool = True
) -> list[str]:
    names = sorted(each.encode() for each in there)

    def before(key: bytes) -> bytes | None:
        i = bisect_left(names, key)
        return names[i - 1] if i else None

    def behind(key: bytes) -> bytes | None:
        i = bisect_right(names, key)
        return names[i] if i < len(names) else None

    def folders(folder: bytes) -> list[bytes]:
        return folders_before(folder, before)

    liked = None if like is None else like.encode()
    found = candidates(name.encode(), liked, folders, before, behind, beside=beside)
    return [each.decode() for each in found]


@pytest.mark.parametrize(
    ("name", "there", "found"),
    [
        ("dumps/2026-11-28", ["dumps/2026-11-26", "dumps/2026-11-27"], ["dumps/2026-11-27"]),
        ("r/2.tar", ["r/1.tar"], ["r/1.tar"]),
        ("5.0.tar", ["4.2.tar", "6.0.tar"], ["4.2.tar", "6.0.tar"]),
        ("r/10.tar", ["r/1.tar", "r/9.tar"], ["r/1.tar", "r/9.tar"]),
        ("r/log", ["r/data.csv", "r/notes"], ["r/notes"]),
        ("r/b.csv", ["r/a.json"], []),
        ("r/b.csv", ["q/b.csv"], ["q/b.csv"]),  # the folder before
        ("v2/a/b", ["v1/a/b", "v1/a/c"], ["v1/a/b"]),
        ("x/v2/b", ["x/v1/b"], ["x/v1/b"]),
        ("r/b", ["r/a/b"], []),
        ("only", [], []),
    ],
)
def test_the_names_beside(name: str, there: list[str], found: list[str]) -> None:
    assert [each for each in looked_for(name, there)[1:] if each in there] == found
    assert looked_for(name, there)[0] == name
    assert looked_for(name, there, like="other")[:2] == ["other", name]


def test_not_beside() -> None:
    there = ["v1/a.csv", "v2/b.csv"]
    assert looked_for("v2/a.csv", there, beside=False) == ["v2/a.csv"]
    assert looked_for("v2/a.csv", there, like="other", beside=False) == ["other", "v2/a.csv"]
