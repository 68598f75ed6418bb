"""What the documents point to is there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "castore" / "FORMAT.md"]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
FILE = re.compile(r"`(?:[a-z]+ )?((?:castore|conducto|tests|bench)/[\w/]+\.\w+|\w+\.py)\b")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for path, heading in LINK.findall(document.read_text()):
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), path
        if heading:
            assert heading in anchors(target), heading


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_are_named_are_there(document: Path) -> None:
    tops = [ROOT / top for top in ("castore", "tests", "bench")]
    known = {path.name for top in tops for path in top.glob("**/*")} | set(os.listdir(ROOT))
    for named in FILE.findall(document.read_text()):
        assert (ROOT / named).exists() if "/" in named else named in known, named


def test_each_design_note_is_listed() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    notes = sorted((ROOT / "docs" / "design").iterdir())
    assert [int(note.name[:4]) for note in notes] == list(range(1, len(notes) + 1))
    for note in notes:
        title = note.read_text().splitlines()[0].removeprefix(f"# {note.name[:4]}: ")
        assert f"[{note.name[:4]}](design/{note.name}) {title}" in index


def test_each_module_is_in_the_picture_of_the_layers() -> None:
    shown = pictured((ROOT / "CONTRIBUTING.md").read_text())
    modules: dict[str, set[str]] = {}
    for top in ("castore", "conducto"):
        for path in (ROOT / top).glob("**/*.py"):
            if not path.name.startswith("__"):
                modules.setdefault(f"{path.parent.relative_to(ROOT)}/", set()).add(path.stem)
    for folder, words in shown.items():
        there = modules[folder]
        stems = tuple(word.removesuffix("*") for word in words if word.endswith("*"))
        missing = {name for name in there - words if not (stems and name.startswith(stems))}
        assert missing == set(), folder
    assert modules.keys() - shown.keys() == {
        "castore/",  # the layers themselves
        "castore/demo/",
        "castore/testing/",
        "conducto/shared/",
    }


def pictured(contributing: str) -> dict[str, set[str]]:
    """The words that are said of each folder of modules: "castore/local/gc/" has "mark", ..."""
    picture = max(re.findall(r"```\n(castore/.*?)```", contributing, re.DOTALL), key=len)
    shown: dict[str, set[str]] = {}
    for block in re.split(r"^(?=[a-z])", picture, flags=re.MULTILINE)[1:]:
        folder, rest = block.split(maxsplit=1)
        for inner, names in re.findall(r"([a-z]+/)\{([^}]*)\}", rest):
            shown.setdefault(folder + inner, set()).update(names.split(","))
        outside = re.sub(r"[a-z]+/\{[^}]*\}", "", rest)
        shown[folder] = set(re.findall(r"[a-z0-9_]+\*?", outside))
    return shown


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
