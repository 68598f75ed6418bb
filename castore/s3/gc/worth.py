"""Which packs it pays to rewrite, on S3: what that costs against what it saves. Pure.

To rewrite a pack, what is alive in it is read and put into another one; and every manifest that
leads to it is read and put anew, which for a pack that many names share is nearly all of what it
costs. A manifest is put once, however many packs are rewritten at a time: so all that have
something to give bear that together, and those are rewritten that can bear the manifests that they
have.

What a pack has to give is what its garbage has cost by now. Who knew how long it is going to stay
would do better: packs empty by themselves as names go. But nobody does, and to buy once the rent
that was paid comes to the price is never worse than twice the best; where garbage comes day by day
it is the best, as too many rewrites then cost as much as too much garbage. It never gives more than
it would within the horizon, the time for which the store is likely to be kept.

A pack more is one more that writers look for, each day: so much small ones have to give.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from castore.s3.session import MOVED_GAP_BYTES
from castore.stream.prices import Prices
from castore.stream.repack_choice import PackFacts

EDGES_MAX = 1 << 24  # that are kept of which manifests have which packs, in 4 bytes each
SHARE_MAX = 0.9  # of a pack that is alive, above which nobody would move it
DAY_S = 86_400.0
ROUNDS = 24  # in which charges come to rest, nearly
TOLERANCE = 1.01
TINY = 1e-300


class Rows:
    """Lists of numbers, one behind the other: each up to its end."""

    def __init__(self, numbers: array[int], ends: array[int]) -> None:
        self._numbers = numbers
        self._ends = ends

    def __iter__(self) -> Iterator[array[int]]:
        begin = 0
        for end in self._ends:
            yield self._numbers[begin:end]
            begin = end


class Referrers:
    """Which packs manifests have: of all, or if these are too many, of a sample.

    A name is in the sample, or is not, by its hash, so that it is a fair one.

    """

    def __init__(self, edges_max: int = 0) -> None:
        self.weight = 1  # how many manifests each stands for
        self._edges_max = edges_max or EDGES_MAX
        self._numbers: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        self._hashes = array("Q")
        self._ends = array("Q")
        self._packs = array("I")

    def add(self, name_hash: int, pack_ids: Sequence[bytes]) -> None:
        """A manifest, of a name with this hash, of 64 bits, has these packs."""
        if name_hash % self.weight:
            return
        for pack_id in pack_ids:
            number = self._numbers.setdefault(pack_id, len(self._ids))
            if number == len(self._ids):
                self._ids.append(pack_id)
            self._packs.append(number)
        self._hashes.append(name_hash)
        self._ends.append(len(self._packs))
        while len(self._packs) > self._edges_max:
            self._thin()

    def only(self, pack_ids: Collection[bytes]) -> tuple[dict[bytes, int], Rows]:
        """The packs' numbers, and for each manifest in the sample those of them that it has, if
        any."""
        numbers = {i: number for i in pack_ids if (number := self._numbers.get(i)) is not None}
        wanted = {*numbers.values()}
        packs, ends, begin = array("I"), array("Q"), 0
        for end in self._ends:
            packs.extend([number for number in self._packs[begin:end] if number in wanted])
            begin = end
            if len(packs) > (ends[-1] if ends else 0):
                ends.append(len(packs))
        return numbers, Rows(packs, ends)

    def reach(self, pack_ids: Collection[bytes]) -> tuple[int, int]:
        """(how many manifests have one of the packs, how many packs these have altogether)."""
        wanted = {number for i in pack_ids if (number := self._numbers.get(i)) is not None}
        manifests = 0
        reached: set[int] = set()
        for packs in Rows(self._packs, self._ends):
            if not wanted.isdisjoint(packs):
                manifests += 1
                reached.update(packs)
        return manifests * self.weight, len(reached)

    def _thin(self) -> None:
        """Keep half of them."""
        self.weight *= 2
        kept = [i for i, name_hash in enumerate(self._hashes) if not name_hash % self.weight]
        packs, ends = array("I"), array("Q")
        for i in kept:
            packs.extend(self._packs[self._ends[i - 1] if i else 0 : self._ends[i]])
            ends.append(len(packs))
        self._hashes = array("Q", [self._hashes[i] for i in kept])
        self._packs, self._ends = packs, ends


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of rewriting some packs: how many manifests and requests it takes, and what it costs and
    saves, in dollars; `bytes_freed` net of what is written."""

    manifests: int = 0
    requests: int = 0
    bytes_freed: int = 0
    cost: float = 0.0
    saves: float = 0.0


class Bargain:
    """What it costs and saves to rewrite packs of one store; `rents` are the byte-seconds that the
    garbage of each has been kept by now, `ages_s` how old each pack is."""

    def __init__(
        self,
        referrers: Referrers,
        prices: Prices,
        horizon_s: float,
        pack_bytes: int,
        *,
        rents: Mapping[bytes, float],
        ages_s: Mapping[bytes, float],
    ) -> None:
        self._referrers = referrers
        self._prices = prices
        self._horizon_s = horizon_s
        self._pack_bytes = pack_bytes
        self._rents = rents
        self._ages_s = ages_s
        self._manifest = prices.requests(1, 1)

    def worthwhile(self, packs: Sequence[PackFacts]) -> list[PackFacts]:
        """Those that it pays to rewrite together."""
        gain: dict[bytes, float] = {}
        for pack in packs:
            left = self._gives(pack) - self._own(pack)
            if left > 0 and (pack.live_share <= SHARE_MAX or pack.size < self._pack_bytes // 16):
                gain[pack.pack_id] = left
        kept = self._paying(gain, 1.0)
        return [pack for pack in packs if pack.pack_id in kept]

    def within(self, packs: Sequence[PackFacts], cost_max: float) -> list[PackFacts]:
        """Of these, those that save most for what they cost, as many as cost so much at most."""
        saves = {pack.pack_id: self._saves(pack) + 1e-12 for pack in packs}
        chosen, before, ratio = packs, packs, 1e-6
        while chosen and self.estimate(chosen).cost > cost_max:
            # What a pack costs by itself counts, too: some have no manifest in the sample, and
            # where requests cost nothing, no manifest ever is too much.
            gain = {
                pack.pack_id: left
                for pack in chosen
                if (left := saves[pack.pack_id] - ratio * self._own(pack)) > 0
            }
            kept = self._paying(gain, ratio)
            if len(kept) == len(chosen):
                ratio *= 1.5
            else:
                before, chosen = chosen, [pack for pack in chosen if pack.pack_id in kept]
        there = {pack.pack_id for pack in chosen}
        # Packs that are alike went together, and some of them may fit.
        alike = self._cheapest_first([p for p in before if p.pack_id not in there], saves)
        fitting = bisect_left(
            range(1, len(alike) + 1),
            True,
            key=lambda count: self.estimate([*chosen, *alike[:count]]).cost > cost_max,
        )
        there |= {pack.pack_id for pack in alike[:fitting]}
        return [pack for pack in packs if pack.pack_id in there]

    def _cheapest_first(
        self, packs: Sequence[PackFacts], saves: Mapping[bytes, float]
    ) -> list[PackFacts]:
        numbers, rows = self._referrers.only([pack.pack_id for pack in packs])
        weights = {number: saves[i] for i, number in numbers.items()}
        charged = _charged(rows, weights, self._manifest * self._referrers.weight)

        def cost(pack: PackFacts) -> float:
            number = numbers.get(pack.pack_id)
            return self._own(pack) + (0.0 if number is None else charged[number])

        return sorted(packs, key=cost)

    def estimate(self, packs: Sequence[PackFacts]) -> Estimate:
        if not packs:
            return Estimate()
        manifests, reached = self._referrers.reach([pack.pack_id for pack in packs])
        gets = sum(map(_reads, packs)) + manifests + reached
        puts = sum(self._puts(pack) for pack in packs) + manifests
        moved = 2 * sum(pack.live_bytes for pack in packs)
        return Estimate(
            manifests,
            round(gets + puts),
            sum(pack.size - pack.live_size for pack in packs),
            self._prices.requests(puts, gets) + self._prices.moving(moved),
            sum(map(self._saves, packs)),
        )

    # ------------------------------------------------------------ one pack

    def _own(self, pack: PackFacts) -> float:
        """What it costs, its manifests aside."""
        moving = self._prices.moving(2 * pack.live_bytes)
        return self._prices.requests(self._puts(pack), _reads(pack)) + moving

    def _puts(self, pack: PackFacts) -> float:
        return pack.live_size / self._pack_bytes

    def _gives(self, pack: PackFacts) -> float:
        rent = self._prices.keeping(self._rents.get(pack.pack_id, 0.0))
        age_s = self._ages_s.get(pack.pack_id, 0.0)
        past = rent + self._looking(pack, min(age_s, self._horizon_s))
        return min(past, self._saves(pack))

    def _saves(self, pack: PackFacts) -> float:
        """Within the horizon."""
        dead = max(pack.size - pack.live_size, 0)
        kept = self._prices.keeping(dead * self._horizon_s)
        return kept + self._looking(pack, self._horizon_s)

    def _looking(self, pack: PackFacts, seconds: float) -> float:
        """Of one that is alive to the last byte: it is one of many, which are merged."""
        if pack.live_size < pack.size:
            return 0.0
        fewer = max(1 - self._puts(pack), 0.0)
        return self._prices.requests(0, fewer * seconds / DAY_S)

    # ------------------------------------------------------------ all of them

    def _paying(self, gain: dict[bytes, float], ratio: float) -> dict[bytes, float]:
        """Those packs that can bear `ratio` times what all the manifests cost that they have, one
        of them more of it and another less, as long as no gain is exceeded."""
        numbers, rows = self._referrers.only(gain)
        gains = {number: gain[i] for i, number in numbers.items()}
        cost = self._manifest * self._referrers.weight * ratio
        while gains:
            lost = _overcharged(rows, gains, cost)
            if not lost:
                break
            for number in lost:
                del gains[number]
        return {i: g for i, g in gain.items() if i not in numbers or numbers[i] in gains}


def _overcharged(rows: Rows, gains: Mapping[int, float], cost: float) -> list[int]:
    """Those that can't bear what is left to them of the cost of all rows that they are in.

    Each row is borne in proportion to weights, which are lowered where there is too much to bear,
    and raised where there is more to give. So what is charged comes to rest where the gains are:
    a row that one in it can bear burdens no other, and those that are charged too much in the end
    are in no row that could do without them.
    """
    weights = dict(gains)
    for _ in range(ROUNDS):
        charged = _charged(rows, weights, cost)
        over = [number for number, charge in charged.items() if charge > gains[number] * TOLERANCE]
        if not over:
            break
        for number, charge in charged.items():
            if charge:
                weights[number] *= gains[number] / charge
    return over


def _charged(rows: Rows, weights: Mapping[int, float], cost: float) -> dict[int, float]:
    parts = dict.fromkeys(weights, 0.0)
    for row in rows:
        there = [number for number in row if number in weights]
        if there:
            each = cost / max(sum([weights[number] for number in there]), TINY)
            for number in there:
                parts[number] += each
    return {number: part * weights[number] for number, part in parts.items()}


def _reads(pack: PackFacts) -> float:
    """Requests at most: one for each stretch that has no large gap in it."""
    return min(pack.live_frames, pack.size // MOVED_GAP_BYTES + 1)
