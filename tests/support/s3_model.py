"""An explicit-state model of writers and collectors on one store on S3, as they are implemented.

Every actor is a little machine whose steps are the requests of `castore/s3/lease.py`,
`castore/s3/reliance.py`, `castore/s3/session.py` and `castore/s3/gc`; `explore` visits every state
that any order of them leads to. An actor that is never scheduled again has crashed. Packs are bits;
chunks are not modelled: a put needs packs, and where it can't rely on one it uploads its own
instead.

Each guard of the protocol is a field of Rules, so that a test can show what it is there for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explored import explore_all

YOUNG, OLD, EXPIRED = 0, 1, 2  # ages of a pin: up to a day, up to a week, more
PINS_MAX = 3  # per session
A, B, REPACKED = 1, 2, 4  # packs that are there from the start, and the one that A moves to
LOST = -1  # in place of a condemned list: it can't be read
COLLECTOR = 9  # the session of the one that repacks


class Version(NamedTuple):
    """What a name maps to: the packs that it needs, and which of these only for bases of deltas."""

    content: str
    packs: int
    etag: str
    bases: int = 0


Name = Version | None


@dataclass(frozen=True)
class Rules:
    """The guards, all of which hold unless a test takes one away."""

    pin: bool = True  # what is reused is pinned
    state_after_pin: bool = True  # the collector's plans are read after that
    read_state: bool = True  # and what is condemned is uploaded anew
    head: bool = True  # what is gone, too
    head_after_state: bool = True
    copies_rely: bool = True  # a copy takes the same steps
    bases_rely: bool = True  # and a put that uses what is in a pack as a base
    copies_rely_on_bases: bool = True  # and a copy of what needs them
    heads_have_bases: bool = True  # a manifest tells collectors of its bases' packs, too
    check_age: bool = True  # nothing is signed once a pin is a day old
    stale_refused: bool = True  # nor does a request land that was signed long ago
    keep_pins: bool = True  # while an attempt may yet land
    own_packs: bool = True  # a pinned session protects its own packs
    packs_first: bool = True  # they are listed before pins and names, and once
    pins_first: bool = True  # and pins before names
    second_look: bool = True
    swap: bool = True  # gc/state moves by compare-and-swap
    finish_sweep: bool = True  # one that is found is finished
    await_deletes: bool = True  # before the state is idle
    carry: bool = True  # what can't be removed stays condemned
    carry_known: bool = True  # for whoever leads next, too
    repack_pinned: bool = True
    rewrite_if_match: bool = True
    delete_if_match: bool = True  # by a rename
    condemn_anew: bool = True  # where the list is lost
    await_writers: bool = True  # who rely on what no name has yet


@dataclass(frozen=True)
class Scenario:
    """Who is there. A writer's program is of (verb, name's number, packs or source); a `delta` is a
    put with bases in these packs, where a `put` reuses chunks."""

    writers: tuple[tuple[tuple[str, int, int], ...], ...] = ()
    collectors: int = 1
    repacks: bool = False
    deletes: tuple[int, ...] = ()  # names that their user deletes at some time
    ages: bool = False  # pins grow old, and expire
    late: bool = False  # a put's first attempt may land at any later time
    loses: bool = False  # some list is lost, and mended by a repair
    trying: int = 0  # packs that are condemned, and that a late request may yet remove
    stuck: int = 0  # packs that the server does not remove, but some day
    names: tuple[Name, ...] = (None, None, Version("z", A | B, "z0"))


class Pin(NamedTuple):
    session: int
    number: int
    packs: int
    age: int


class Writer(NamedTuple):
    at: str = "begin"
    op: int = 0
    asked: int = 0  # packs of the newest pin
    relied: int = 0
    anew: int = 0  # packs whose chunks are uploaded again
    own: int = 0
    pins: int = 0
    unknown: bool = False
    read: Name = None  # what a copy copies


class Collector(NamedTuple):
    at: str = "begin"
    version: int = 0
    packs: int = 0
    live: int = 0
    seen: int = 0  # of the keys to be listed, as bits
    carried: int = 0


class Repacker(NamedTuple):
    at: str = "begin"
    name: int = 0
    read: Name = None
    unknown: bool = False


class Mender(NamedTuple):
    """Of a list that is lost."""

    at: str = "wait"
    version: int = 0
    packs: int = 0
    named: int = 0
    pinned: int = 0
    seen: int = 0  # of the keys to be listed, as bits


class State(NamedTuple):
    packs: int
    names: tuple[Name, ...]
    owed: int  # names that were acknowledged, as bits
    pins: tuple[Pin, ...]
    phase: tuple[int, str, int, int]  # version, phase, list, what of it is carried
    writers: tuple[Writer, ...]
    collectors: tuple[Collector, ...]
    repacker: Repacker | None
    late: frozenset[tuple[object, ...]]
    deletes: tuple[int, ...]
    mender: Mender | None = None
    wrong: str = ""


Steps = Iterator[tuple[str, State]]


def own_pack(session: int, op: int) -> int:
    return REPACKED if session == COLLECTOR else 8 << (3 * session + op)


def own_packs(session: int) -> int:
    return REPACKED if session == COLLECTOR else 0b111 << (3 + 3 * session)


def put(items: tuple, i: int, item: object) -> tuple:  # type: ignore[type-arg]
    return (*items[:i], item, *items[i + 1 :])


class Model:
    def __init__(self, scenario: Scenario, rules: Rules) -> None:
        self.scenario = scenario
        self.rules = rules
        sessions = [*range(len(scenario.writers)), *([COLLECTOR] if scenario.repacks else [])]
        pins = [("pin", (s, n)) for s in sessions for n in range(PINS_MAX)]
        names = [("name", i) for i in range(len(scenario.names))]
        self.keys = [*pins, *names]
        self.stages = [range(len(pins)), range(len(pins), len(self.keys))]
        if not rules.pins_first:
            self.stages.reverse()

    def begin(self) -> State:
        s = self.scenario
        owed = sum(1 << i for i, name in enumerate(s.names) if name is not None)
        return State(
            A | B,
            s.names,
            owed,
            (),
            (1, "condemned", s.trying, s.trying) if s.trying else (0, "idle", 0, 0),
            (Writer(),) * len(s.writers),
            (Collector(),) * s.collectors,
            Repacker() if s.repacks else None,
            frozenset([("delete", s.trying)] if s.trying else []),
            s.deletes,
            Mender() if s.loses else None,
        )

    def steps(self, s: State) -> Steps:
        for i in range(len(s.writers)):
            yield from self.write(s, i)
        for i in range(len(s.collectors)):
            yield from self.collect(s, i)
        if s.repacker is not None:
            yield from self.repack(s, s.repacker)
        if s.mender is not None:
            yield from self.mend(s, s.mender)
        yield from self.world(s)

    # ------------------------------------------------------------ time, users, late requests

    def world(self, s: State) -> Steps:
        for i in s.deletes:
            left = tuple(j for j in s.deletes if j != i)
            names = put(s.names, i, None)
            yield f"delete {i}", s._replace(names=names, owed=s.owed & ~(1 << i), deletes=left)
        for i, pin in enumerate(s.pins if self.scenario.ages else ()):
            if pin.age == EXPIRED:
                yield f"expire {pin}", s._replace(pins=(*s.pins[:i], *s.pins[i + 1 :]))
            elif pin.age == YOUNG or not (self.rules.stale_refused and self.signed(s, pin.session)):
                yield f"age {pin}", s._replace(pins=put(s.pins, i, pin._replace(age=pin.age + 1)))
        for request in s.late:
            left_late = s.late - {request}
            yield "never lands", s._replace(late=left_late)
            if request[0] == "delete":
                _, packs = request
                assert isinstance(packs, int)
                yield f"LATE {request}", s._replace(packs=s.packs & ~packs, late=left_late)
                continue
            _, _, name, version, only = request
            assert isinstance(name, int)
            there = s.names[name]
            if only is None or (there is not None and there.etag == only):
                names = put(s.names, name, version)
                yield f"LATE {request}", s._replace(names=names, late=left_late)

    @staticmethod
    def signed(s: State, session: int) -> bool:
        """Whether a put of the session is under way: it lands in minutes, or never."""
        if any(request[0] == "put" and request[1] == session for request in s.late):
            return True
        if session == COLLECTOR:
            return s.repacker is not None and s.repacker.at == "put"
        return s.writers[session].at == "put"

    # ------------------------------------------------------------ writers

    def write(self, s: State, i: int) -> Steps:
        w, rules = s.writers[i], self.rules
        if w.at in ("done", "over"):
            return
        verb, name, need = self.scenario.writers[i][w.op]
        copies = verb in ("copy", "rename")

        def to(at: str, state: State = s, **changes: object) -> tuple[str, State]:
            changed = w._replace(at=at, **changes)  # type: ignore[arg-type]
            return f"w{i} {at} {changes}", state._replace(writers=put(s.writers, i, changed))

        if w.at == "begin":
            if copies and w.read is None:
                read = s.names[need]
                yield to("close") if read is None else to("begin", read=read)
                return
            wanted = need if w.read is None else w.read.packs
            if w.read is not None and not rules.copies_rely_on_bases:
                wanted &= ~w.read.bases
            new = wanted & ~(w.relied | w.anew | w.own)
            if (copies and not rules.copies_rely) or (verb == "delta" and not rules.bases_rely):
                new = 0
            if w.pins and not new:
                yield to("upload", asked=0)
                return
            if rules.state_after_pin:
                yield to("pinned", self.pinned(s, i, w, new), asked=new, pins=w.pins + 1)
            else:
                doomed = new & s.phase[2]
                yield to("late pin", asked=new & ~doomed, anew=w.anew | doomed)
        elif w.at == "late pin":
            yield to("looked", self.pinned(s, i, w, w.asked), pins=w.pins + 1)
        elif w.at == "pinned" and s.phase[2] == LOST:
            yield to("close")  # what it may rely on is not known
        elif w.at == "pinned":
            if rules.head_after_state:
                doomed = w.asked & s.phase[2] if rules.read_state else 0
            else:
                doomed = w.asked & ~s.packs if rules.head else 0
            yield to("looked", asked=w.asked & ~doomed, anew=w.anew | doomed)
        elif w.at == "looked":
            if rules.head_after_state:
                gone = w.asked & ~s.packs if rules.head else 0
            else:
                gone = w.asked & s.phase[2] if rules.read_state else 0
            yield to("upload", asked=0, relied=w.relied | w.asked & ~gone, anew=w.anew | gone)
        elif w.at == "upload":
            again = w.anew if w.read is None else w.read.packs & w.anew
            if copies and again & ~s.packs:
                yield to("close")  # its source is gone
            elif copies and not again:
                yield to("sign")
            else:
                own = own_pack(i, w.op)
                yield to("sign", s._replace(packs=s.packs | own), own=w.own | own)
        elif w.at == "sign":
            mine = [pin for pin in s.pins if pin.session == i]
            if not rules.check_age or (
                len(mine) == w.pins and all(pin.age == YOUNG for pin in mine)
            ):
                yield to("put")
            else:
                yield to("close")  # it took longer than a day
        elif w.at == "put":
            version = self.version(i, w, verb, need)
            yield to("acknowledge", s._replace(names=put(s.names, name, version)))
            if self.scenario.late and not w.unknown:
                request = ("put", i, name, version, None)
                yield to("sign", s._replace(late=s.late | {request}), unknown=True)
        elif w.at == "acknowledge":
            owed = s.owed | 1 << name if s.names[name] is not None else s.owed
            yield to("next", s._replace(owed=owed))
        elif w.at == "next":
            after = s
            if verb == "rename":
                there = s.names[need]
                assert w.read is not None
                if there is not None and (there.etag == w.read.etag or not rules.delete_if_match):
                    wrong = (
                        ""
                        if there.content == w.read.content
                        else "a rename deleted what it never read"
                    )
                    owed = s.owed & ~(1 << need)
                    after = s._replace(names=put(s.names, need, None), owed=owed, wrong=wrong)
            if w.op + 1 < len(self.scenario.writers[i]):
                yield to("begin", after, op=w.op + 1, read=None)
            else:
                yield to("close", after)
        elif w.at == "close":
            kept = s.pins
            if not (w.unknown and rules.keep_pins):
                kept = tuple(pin for pin in s.pins if pin.session != i)
            yield to("done", s._replace(pins=kept))

    def pinned(self, s: State, i: int, w: Writer, packs: int) -> State:
        pin = Pin(i, w.pins, packs if self.rules.pin else 0, YOUNG)
        return s._replace(pins=tuple(sorted([*s.pins, pin])))

    @staticmethod
    def version(i: int, w: Writer, verb: str, need: int) -> Name:
        tag = f"w{i}.{w.op}.{w.unknown}"
        if w.read is None:
            relied = need & ~w.anew
            bases = relied if verb == "delta" else 0
            return Version(f"w{i}.{w.op}", relied | w.own, tag, bases)
        again = w.read.packs & w.anew
        packs = w.read.packs & ~again | (w.own if again else 0)
        return Version(w.read.content, packs, tag, w.read.bases & ~again)

    # ------------------------------------------------------------ collectors

    def collect(self, s: State, i: int) -> Steps:
        c, rules = s.collectors[i], self.rules
        version, phase, listed, carried = s.phase

        def to(at: str, state: State = s, **changes: object) -> tuple[str, State]:
            changed = c._replace(at=at, **changes)  # type: ignore[arg-type]
            return f"c{i} {at} {changes}", state._replace(collectors=put(s.collectors, i, changed))

        def swap(at: str, phase: str, packs: int, **changes: object) -> tuple[str, State]:
            if rules.swap and version != c.version:
                return to("done")
            kept = c.carried if phase == "condemned" and rules.carry_known else 0
            moved = s._replace(phase=(version + 1, phase, packs, kept))
            return to(at, moved, version=version + 1, **changes)

        if c.at == "begin":
            if listed == LOST:
                yield to("done")
                return
            if phase == "sweeping" and rules.finish_sweep:
                yield to("sweep", version=version, packs=listed)
                return
            led = s._replace(phase=(version + 1, phase, listed, carried))
            if phase == "condemned":
                yield to("look again", led, version=version + 1, packs=listed, carried=carried)
            else:
                yield to("packs", led, version=version + 1)
        elif c.at == "packs":
            yield to("look", packs=s.packs if rules.packs_first else 0)
        elif c.at in ("look", "look again"):
            for number in self.next_keys(c.seen):
                live = c.live | self.live(s, *self.keys[number])
                seen = c.seen | 1 << number
                if seen + 1 < 1 << len(self.keys):
                    yield to(c.at, live=live, seen=seen)
                    continue
                packs = c.packs if rules.packs_first else s.packs
                dead = packs & ~live | c.carried
                yield to("condemn" if c.at == "look" else "doom", packs=dead, live=0, seen=0)
        elif c.at == "condemn":
            if not c.packs:
                yield to("done")
            elif rules.second_look:
                yield swap("look again", "condemned", c.packs)
            else:
                yield swap("sweep", "sweeping", c.packs)
        elif c.at == "doom":
            yield swap("sweep", "sweeping", c.packs)
        elif c.at == "sweep":
            yield from self.sweep(s, c, to, swap)

    def next_keys(self, seen: int) -> list[int]:
        """The keys that may be looked at next: pins one after the other, names from several places
        on at once, and so in any order."""
        for stage in self.stages:
            left = [i for i in stage if not seen & 1 << i]
            if left:
                return left if self.keys[left[0]][0] == "name" else left[:1]
        raise AssertionError("all keys were seen")

    def sweep(self, s: State, c: Collector, to, swap) -> Steps:  # type: ignore[no-untyped-def]
        left = c.packs & s.packs
        if not self.rules.await_deletes and s.phase[0] == c.version and s.phase[1] == "sweeping":
            yield to(
                "sweep", s._replace(phase=(c.version + 1, "idle", 0, 0)), version=c.version + 1
            )
            return
        for bit in range(left.bit_length()):
            pack = left & 1 << bit
            if pack and not pack & self.scenario.stuck:
                yield to("sweep", s._replace(packs=s.packs & ~pack))
        if not left & ~self.scenario.stuck:
            stuck = left & self.scenario.stuck
            late = s.late | {("delete", stuck)} if stuck else s.late
            if stuck and self.rules.carry:
                # A second time would be the same again, under higher versions without end.
                if c.carried:
                    yield to("over", s._replace(late=late), carried=stuck)
                else:
                    label, led = swap("packs", s.phase[1], s.phase[2], carried=stuck)
                    yield label, led._replace(late=late)
            else:
                label, retired = swap("done", "idle", 0)
                yield label, retired._replace(late=late)

    def live(self, s: State, kind: str, key: object) -> int:
        if kind == "name":
            assert isinstance(key, int)
            name = s.names[key]
            if name is None:
                return 0
            return name.packs if self.rules.heads_have_bases else name.packs & ~name.bases
        found = 0
        for pin in s.pins:
            if (pin.session, pin.number) == key:
                found |= pin.packs | (own_packs(pin.session) if self.rules.own_packs else 0)
        return found

    # ------------------------------------------------------------ a list that is lost, and mended

    def mend(self, s: State, m: Mender) -> Steps:
        rules = self.rules
        version, phase, listed, _ = s.phase

        def to(at: str, state: State = s, **changes: int) -> tuple[str, State]:
            changed = m._replace(at=at, **changes)  # type: ignore[arg-type]
            return f"mend {at} {changes}", state._replace(mender=changed)

        if m.at == "wait":
            if listed:
                yield to("begin", s._replace(phase=(version, phase, LOST, 0)))
        elif m.at == "begin":
            if listed == LOST:
                yield to("look", version=version, packs=s.packs)
            else:
                yield to("done")
        elif m.at == "look":
            for number in self.next_keys(m.seen):
                kind, key = self.keys[number]
                found = self.live(s, kind, key)
                named = m.named | (found if kind == "name" else 0)
                pinned = m.pinned | (found if kind == "pin" else 0)
                seen = m.seen | 1 << number
                if seen + 1 < 1 << len(self.keys):
                    yield to("look", named=named, pinned=pinned, seen=seen)
                elif m.packs & ~named & pinned and rules.await_writers:
                    yield to("begin", version=0, packs=0, named=0, pinned=0, seen=0)
                else:
                    packs = m.packs & ~named
                    yield to("condemn", packs=packs, named=0, pinned=0, seen=0)
        elif m.at == "condemn":
            if version != m.version:
                yield to("done")
                return
            now = (version + 1, "idle", 0, 0)
            if m.packs and rules.condemn_anew:
                now = (version + 1, "condemned", m.packs, m.packs)
            yield to("done", s._replace(phase=now))

    # ------------------------------------------------------------ a collector that repacks

    def repack(self, s: State, r: Repacker) -> Steps:
        rules = self.rules

        def to(at: str, state: State = s, **changes: object) -> tuple[str, State]:
            changed = r._replace(at=at, **changes)  # type: ignore[arg-type]
            return f"repack {at} {changes}", state._replace(repacker=changed)

        if r.at == "begin":
            pin = Pin(COLLECTOR, 0, 0, YOUNG)
            pins = tuple(sorted([*s.pins, pin])) if rules.repack_pinned else s.pins
            yield to("read", s._replace(pins=pins))
        elif r.at == "read":
            if r.name >= len(s.names):
                kept = s.pins
                if not (r.unknown and rules.keep_pins):
                    kept = tuple(pin for pin in s.pins if pin.session != COLLECTOR)
                yield to("done", s._replace(pins=kept))
                return
            there = s.names[r.name]
            if there is not None and there.packs & A and s.packs & A:
                yield to("upload", read=there)
            else:
                yield to("read", name=r.name + 1)
        elif r.at == "upload":
            yield to("sign", s._replace(packs=s.packs | REPACKED))
        elif r.at == "sign":
            young = any(pin.session == COLLECTOR and pin.age == YOUNG for pin in s.pins)
            if young or not rules.check_age or not rules.repack_pinned:
                yield to("put")
            else:
                yield to("done")
        elif r.at == "put":
            assert r.read is not None
            there = s.names[r.name]
            bases = r.read.bases & ~A | (REPACKED if r.read.bases & A else 0)
            packs = r.read.packs & ~A | REPACKED
            version = Version(r.read.content, packs, f"r{r.name}", bases)
            only = r.read.etag if rules.rewrite_if_match else None
            if only is not None and (there is None or there.etag != only):
                yield to("read", name=r.name + 1)
            else:
                same = there is not None and there.content == r.read.content
                wrong = "" if same else "repacking undid a put or a deletion"
                after = s._replace(names=put(s.names, r.name, version), wrong=wrong)
                yield to("read", after, name=r.name + 1)
            if self.scenario.late and not r.unknown:
                late = s.late | {("put", COLLECTOR, r.name, version, only)}
                yield to("read", s._replace(late=late), name=r.name + 1, unknown=True)


def lost(s: State) -> str:
    """What must never be."""
    if s.wrong:
        return s.wrong
    for i, name in enumerate(s.names):
        if name is None:
            if s.owed >> i & 1:
                return f"name {i} was acknowledged, and is gone"
        elif name.packs & ~s.packs and s.owed >> i & 1:
            return f"name {i}, {name.content}, needs packs that are gone: {name.packs & ~s.packs:b}"
    return ""


def explore(scenario: Scenario, rules: Rules, *, states_max: int) -> tuple[int, list[str]]:
    """(states visited, the steps to the first that must never be). Raises AssertionError if there
    are more than `states_max`."""
    model = Model(scenario, rules)
    return explore_all(model.begin(), model.steps, lost, states_max=states_max)
