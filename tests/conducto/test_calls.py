"""Functions and their arguments as command lines, and back."""

from __future__ import annotations

import datetime
import enum
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NewType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import conducto as co
from conducto.arguments import UsageError
from conducto.nodes.calls import parse_call
from conducto.nodes.values import NotOnCommandLine, from_text, to_text

if TYPE_CHECKING:
    from decimal import Decimal

Count = NewType("Count", int)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def every(
    text: str,
    count: int,
    share: float,
    loud: bool,
    data: bytes,
    path: Path,
    day: datetime.date,
    at: datetime.datetime,
    color: Color,
    kind: Literal["a", "b"],
    counts: list[int],
    words: list[str],
    pair: tuple[float, ...],
    some: set[str],
    known: dict[str, int],
    number: Count,
    both: tuple[int, str],
    rows: list[list[int]],
    maybe: int | None = None,
) -> None:
    pass


ARGUMENTS: dict[str, Any] = {
    "text": "it's --a=b; $x\n",
    "count": -3,
    "share": 0.1,
    "loud": False,
    "data": b"a\xff",
    "path": Path("a/b"),
    "day": datetime.date(2020, 2, 29),
    "at": datetime.datetime(2020, 2, 29, 1, 2, 3, 4),
    "color": Color.BLUE,
    "kind": "b",
    "counts": [1, -2],
    "words": ["a,b", "[", ""],
    "pair": (1.5, float("inf")),
    "some": {"x", "y"},
    "known": {"a": 1},
    "number": Count(4),
    "both": (3, "a,b"),
    "rows": [[1, 2], [], [3]],
    "maybe": 5,
}


def words_of(node: co.Exec) -> list[str]:
    words = shlex.split(node.command)
    assert words[:3] == ["python", "-m", "conducto"]
    assert words[3].endswith("test_calls.py")
    return words[4:]


def test_every_kind_of_argument_comes_back() -> None:
    name, *words = words_of(co.Exec(every, **ARGUMENTS))
    assert name == "every"
    assert parse_call(every, words) == ARGUMENTS


def simple(a: int, b: list[str], c: bool = True, d="x", e=None, f: int | None = None) -> None:  # type: ignore[no-untyped-def]
    "Does it."


@pytest.mark.parametrize(
    ("args", "kwargs", "line"),
    [
        ((1, ["x", "y"]), {}, "simple --a=1 --b=x,y"),
        ((1, []), {"c": True}, "simple --a=1 --b= --c"),
        ((1, [""]), {"c": False}, "simple --a=1 '--b=[\"\"]' --no-c"),
        ((1,), {"b": ["a"], "d": "y", "e": None, "f": 3}, "simple --a=1 --b=a --d=y --f=3"),
    ],
)
def test_command_lines(args: tuple[Any, ...], kwargs: dict[str, Any], line: str) -> None:
    node = co.Exec(simple, *args, **kwargs)
    assert node.command.endswith(f"test_calls.py {line}")
    assert node.doc == "Does it."


def test_a_function_of_no_file_is_refused() -> None:
    """As one is that was typed in, or is in a notebook: its node could not run."""
    typed: dict[str, Any] = {"__name__": "typed"}
    exec(compile("def work() -> None: ...", "<stdin>", "exec"), typed)
    with pytest.raises(TypeError, match="a node runs a function of a file, and work is in none"):
        co.Exec(typed["work"])


def shadowed(help: bool, cache: bool = True, no_cache: bool = True) -> None:
    pass


@pytest.mark.parametrize("values", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_flags_that_alone_would_say_something_else_come_back(values: tuple[int, ...]) -> None:
    """`--help` is the help's, and `--no-cache` is that of the parameter `no_cache`."""
    given = dict(zip(("help", "cache", "no_cache"), map(bool, values), strict=True))
    name, *words = words_of(co.Exec(shadowed, **given))
    assert name == "shadowed"
    assert words[0] != "--help"
    assert parse_call(shadowed, words) == given


def checked(count: int, share: Decimal | None = None, name: str = "") -> Decimal:
    raise NotImplementedError


def test_annotations_that_only_type_checkers_know_count_for_none() -> None:
    words = words_of(co.Exec(checked, 3, name="a"))
    assert words == ["checked", "--count=3", "--name=a"]
    assert parse_call(checked, words[1:]) == {"count": 3, "name": "a"}
    assert parse_call(checked, ["3", "--share=1.50"]) == {"count": 3, "share": "1.50"}
    with pytest.raises(TypeError, match="count"):
        co.Exec(checked, "three")


def test_options_that_are_no_arguments_are_the_nodes() -> None:
    with co.Serial() as root:
        co.Exec(simple, 1, ["x"], name="first", max_time="5m")
        co.Lazy(simple, 1, b=["x"], name="later", node_type=co.Serial, skip=True)
    assert root["first"].max_time_s() == 300
    assert root["later"].skip
    assert isinstance(root["later/Execute"], co.Serial)
    generate = root["later/Generate"]
    assert isinstance(generate, co.Exec)
    assert words_of(generate) == ["simple", "--a=1", "--b=x"]
    with pytest.raises(TypeError, match="no option 'color'"):
        co.Exec(simple, 1, ["x"], color=1)


def tower(share: float, maybe: float | None = None, shares: Sequence[float] = (), rest=0.5) -> None:  # type: ignore[no-untyped-def]
    pass


def test_an_int_for_a_float_comes_back_as_one() -> None:
    _, *words = words_of(co.Exec(tower, 1, -2, [3, 0.5], 4))
    given = parse_call(tower, words)
    assert given == {"share": 1.0, "maybe": -2.0, "shares": [3.0, 0.5], "rest": 4.0}
    numbers = [given["share"], given["maybe"], *given["shares"], given["rest"]]
    assert {type(number) for number in numbers} == {float}


def variadic(*args: int) -> None:
    pass


def positional(n: int, /) -> None:
    pass


def untyped(n) -> None:  # type: ignore[no-untyped-def]
    pass


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        (simple, (), "missing"),
        (simple, (1, ["x"], True, "x", None, 3, 4), "too many"),
        (simple, ("1", ["x"]), "'1' would come back .* as 1: the parameter is read as int$"),
        (simple, (1, ["x"], None), "argument c"),
        (simple, (1, [b"x"]), "would come back"),
        (simple, (1, ["a\0b"]), "NUL"),
        (
            untyped,
            (3,),
            "3 would come back .* as '3': the parameter is read as str, so annotate it$",
        ),
        (checked, (3, 1), "1 would come back .* as '1': the parameter is read as str$"),
        (tower, (True,), "True can't be given to float"),
        (
            tower,
            (2**53 + 1,),
            "would come back .* as 9007199254740992.0: the parameter is read as float$",
        ),
        (tower, (1, True), r"True can't be given to float \| None"),
        (tower, (1, None, [True]), "can't be given to"),
        (variadic, (1,), "can't give"),
        (positional, (1,), "can't give"),
        (lambda: None, (), "by name"),
        (len, (), "by name"),
        (Path.exists, (), "by name"),
    ],
)
def test_calls_that_can_not_be(function: Any, args: tuple[Any, ...], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        co.Exec(function, *args)


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("1 x", {"a": 1, "b": ["x"]}),
        ("--a 1 --b x,y --no-c", {"a": 1, "b": ["x", "y"], "c": False}),
        ("--b=x 1 --c", {"a": 1, "b": ["x"], "c": True}),
        ("--c=no --a=-1 --b=", {"a": -1, "b": [], "c": False}),
        ("1 -- --b", {"a": 1, "b": ["--b"]}),
    ],
)
def test_command_lines_by_hand(line: str, arguments: dict[str, Any]) -> None:
    assert parse_call(simple, line.split(" ")) == arguments


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1", "b missing"),
        ("x y", "--a can't be 'x'"),
        ("1 x --c=maybe", "neither true nor false"),
        ("1 x --z=1", "unknown option --z"),
        ("1 x --no-a", "unknown option --no_a"),
        ("1 x --d", "--d needs a value"),
        ("1 x no z e 5 6", "unexpected argument '6'"),
    ],
)
def test_wrong_command_lines(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_call(simple, line.split(" "))


@pytest.mark.parametrize(
    ("text", "hint", "words"),
    [
        ("[1]", dict[str, int], "no JSON object"),
        ("1,2,3", tuple[int, int], "has the length 3, and not 2"),
    ],
)
def test_texts_that_are_no_value_of_a_kind(text: str, hint: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_text(text, hint)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))


@given(st.lists(TEXT))
def test_lists_of_text_come_back(values: list[str]) -> None:
    assert from_text(to_text(values, list[str]), list[str]) == values


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.none().map(lambda _: "none"), TEXT))
def test_what_a_union_gives_is_what_went_in_or_it_is_refused(value: Any) -> None:
    hint = int | float | str
    try:
        text = to_text(value, hint)
    except NotOnCommandLine:
        return
    again = from_text(text, hint)
    assert (type(again), again) == (type(value), value)
