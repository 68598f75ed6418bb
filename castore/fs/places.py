"""Where everything goes when names, or files, are copied into a folder or to another name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path


class Place(NamedTuple):
    """A source and its target; `is_file` is None where nobody looked what the source is."""

    source: str
    target: str
    is_file: bool | None = True


def as_given(source: Any, target: Any) -> tuple[Any, Any]:
    """Both as fsspec knows them: one path is a str, several are a list, in their order. Raises
    ValueError for lists that do not fit."""
    source, target = one_or_several(source), one_or_several(target)
    if isinstance(source, list) and isinstance(target, list) and len(source) != len(target):
        raise ValueError(f"{len(source)} paths can't go to {len(target)}")
    return source, target


def one_or_several(paths: Any) -> Any:
    """A path as a str, several as a list."""
    return stringify_path(paths) if isinstance(paths, (str, os.PathLike)) else list(paths)


def place_of_file(name: str, target_fs: AbstractFileSystem, target: str) -> Place:
    """Of one that is there: in the target if that is a folder, else as the target."""
    root = target_fs._strip_protocol(target)
    into = is_into(target_fs, target)
    return Place(name, join(root, last_part(name)) if into else root)


def places_of_folder(
    source: str, name: str, inside: Iterable[str], target_fs: AbstractFileSystem, target: str
) -> Iterator[Place]:
    """Of what is `inside` the folder `name`, which the caller spells `source`: with a slash at its
    end it is what is in the folder that goes into one that is there."""
    root = target_fs._strip_protocol(target)
    if name and not source.endswith("/") and is_into(target_fs, target):
        root = join(root, last_part(name))
    below = f"{name}/" if name else ""
    return (Place(each, join(root, each[len(below) :])) for each in inside)


def local_places(
    source: str | list[Any],
    target_fs: AbstractFileSystem,
    target: str,
    recursive: bool,
    maxdepth: int | None,
) -> list[Place] | None:
    """Of a local file or folder that fsspec would take for a pattern or, as it is in no folder, for
    the folder that it is in; else None."""
    local = LocalFileSystem()
    if not isinstance(source, str):
        return None
    name = local._strip_protocol(source)
    if not (has_magic(name) or "/" not in name) or not local.exists(name):
        return None
    if local.isfile(name):
        return [place_of_file(name, target_fs, target)]
    inside = local.find(name, maxdepth=maxdepth) if recursive else []
    return list(places_of_folder(source, name, inside, target_fs, target))


def is_into(fs: AbstractFileSystem, target: str) -> bool:
    """Whether what is copied there goes into a folder, and keeps its name."""
    return target.endswith("/") or bool(fs.isdir(target))


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def parents(name: str) -> Iterator[str]:
    """The folders that a name is in, the whole store's first."""
    if name:
        yield ""
    for at, character in enumerate(name):
        if character == "/":
            yield name[:at]
