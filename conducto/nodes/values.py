"""Values as text on a command line, and back, by the annotation of the parameter they are for.

Text, numbers, bytes, paths, dates, members of an Enum and Literals; lists, tuples and sets of
these, `a,b,c`, or JSON where an element has a comma; dicts, as JSON; and whatever class makes the
same value again of its own text. `to_text` only gives what `from_text` reads as the same value; an
int for a float, which type checkers allow, as the float.
"""

from __future__ import annotations

import datetime
import enum
import json
import os
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
FALSE = frozenset({"0", "false", "f", "no", "n", "off"})
LISTS: dict[Any, Any] = {  # an annotation's class, and what is made of it
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    Sequence: list,
    Iterable: list,
    Collection: list,
    Set: set,
}


class NotOnCommandLine(Exception):
    """A command line can't give this value."""


class ComesBackOther(NotOnCommandLine):
    """A command line would give another value."""


def is_flag(hint: Any) -> bool:
    """Whether it is a bool, alone or with None."""
    return hint is bool or set(_choices(hint)) in ({bool}, {bool, type(None)})


def to_text(value: Any, hint: Any) -> str:
    """Raises NotOnCommandLine."""
    try:
        text = _text(value, hint)
        again = from_text(text, hint)
    except NotOnCommandLine:
        raise
    except Exception as error:  # whatever a class of the caller's raises
        raise NotOnCommandLine(f"{value!r} can't be given to {_shown(hint)}: {error}") from error
    is_alike = type(again) is type(value) or (type(value) is int and type(again) is float)
    if not is_alike or again != value:
        raise ComesBackOther(
            f"{value!r} would come back from a command line as {again!r}: the parameter is "
            f"read as {_shown(hint)}"
        )
    if "\0" in text:
        raise NotOnCommandLine("a command line has no NUL")
    return text


def from_text(text: str, hint: Any) -> Any:
    """Raises ValueError, TypeError, KeyError, ArithmeticError."""
    hint = _resolved(hint)
    origin = typing.get_origin(hint) or hint
    if origin is typing.Union or isinstance(hint, types.UnionType):
        return _from_union(text, hint)
    if origin is typing.Literal:
        return {str(value): value for value in typing.get_args(hint)}[text]
    if origin in LISTS:
        return _list(text, hint, origin)
    if origin in (dict, Mapping):
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        return found
    if hint is Any or hint is str:
        return text
    if hint is bool:
        return _bool(text)
    if hint is bytes:
        return os.fsencode(text)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint[text]
    if hint in (datetime.date, datetime.datetime, datetime.time):
        return hint.fromisoformat(text)
    return hint(text)


def _text(value: Any, hint: Any) -> str:
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(value) if isinstance(value, set | frozenset) else value
        hints = _elements(_list_hint(hint), len(value))
        texts = [_text(each, inner) for each, inner in zip(ordered, hints, strict=True)]
        if texts == [""] or any("," in text or text[:1] == "[" for text in texts):
            return json.dumps(texts, ensure_ascii=False)
        return ",".join(texts)
    return str(value)


def _list(text: str, hint: Any, origin: Any) -> Any:
    if text.startswith("["):
        parts = [part if isinstance(part, str) else json.dumps(part) for part in json.loads(text)]
    else:
        parts = text.split(",") if text else []
    hints = _elements(hint, len(parts))
    return LISTS[origin](from_text(part, inner) for part, inner in zip(parts, hints, strict=True))


def _elements(hint: Any, count: int) -> list[Any]:
    """What each element is. Raises ValueError for a tuple that has another number of them."""
    kinds = typing.get_args(hint) or (str,)
    if typing.get_origin(hint) is tuple and kinds[-1] is not Ellipsis:
        if len(kinds) != count:
            raise ValueError(f"it has the length {count}, and not {len(kinds)}")
        return [*kinds]
    return [kinds[0]] * count


def _list_hint(hint: Any) -> Any:
    return next(
        (each for each in _choices(hint) if (typing.get_origin(each) or each) in LISTS), hint
    )


def _choices(hint: Any) -> tuple[Any, ...]:
    hint = _resolved(hint)
    is_union = typing.get_origin(hint) is typing.Union or isinstance(hint, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _from_union(text: str, hint: Any) -> Any:
    """As the first of its kinds that takes the text; text itself last."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    errors = []
    for kind in sorted(kinds, key=lambda kind: kind is str):
        try:
            return from_text(text, kind)
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            errors.append(str(error))
    raise ValueError("; ".join(errors))


def _bool(text: str) -> bool:
    if text.lower() not in TRUE | FALSE:
        raise ValueError("it is neither true nor false")
    return text.lower() in TRUE


def _resolved(hint: Any) -> Any:
    """What a NewType or an Annotated stands for."""
    while isinstance(hint, typing.NewType) or typing.get_origin(hint) is typing.Annotated:
        hint = hint.__supertype__ if isinstance(hint, typing.NewType) else hint.__origin__
    return hint


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, (type, typing.NewType)) else str(hint)
