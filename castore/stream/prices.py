"""What a server on S3 asks for, in dollars; by default AWS's list prices of S3 Standard,
us-east-1."""

from __future__ import annotations

from typing import Final, NamedTuple

HORIZON_S: Final = 90 * 86_400.0
_MONTH_S = 30 * 86_400.0


class _Prices(NamedTuple):  # a dataclass takes a seventh of what a short command does
    put_million: float = 5.0
    get_million: float = 0.4
    gb_month: float = 0.023
    gb_moved: float = 0.0  # free within a region


class Prices(_Prices):
    """In dollars: a million of requests that put or list, a million of others that read, a GB
    (10^9 bytes) kept for 30 days, and a GB moved to or from the machine that collects.

    >>> castore.Prices().put_million, castore.Prices(put_million=0).put_million
    (5.0, 0)

    """

    __slots__ = ()

    def __new__(cls, *prices: float, **by_name: float) -> Prices:
        made = super().__new__(cls, *prices, **by_name)
        if not all(price >= 0 for price in made):  # nor NaN
            raise ValueError(f"a price must not be negative: {made}")
        return made

    def requests(self, puts: float, gets: float) -> float:
        return (puts * self.put_million + gets * self.get_million) / 1e6

    def keeping(self, byte_seconds: float) -> float:
        return byte_seconds / 1e9 / _MONTH_S * self.gb_month

    def moving(self, size: float) -> float:
        """`size` bytes once, to this machine or from it."""
        return size / 1e9 * self.gb_moved
