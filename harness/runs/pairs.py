"""A covering array: rows in which each pair of values of two fields occurs, made one row at a time.

What upstream refuses together becomes known only while the rows are tried. So a row can be taken back (its pairs are owed
again), and values can be forbidden together at any time. Libraries that make the whole array at once, such as allpairspy,
have neither.

Values are numbered, and sets of values are the bits of an int: a row of 80 fields is made in a few milliseconds.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence

#: A row: field -> the name of its value.
Row = dict[str, str]

#: Rows that are made for each row that is handed out; the one with the most new pairs is taken.
_CANDIDATES = 4

#: How often a row is begun anew, if what is forbidden leaves no value for a field.
_ATTEMPTS = 30


class Pairs:
    """The pairs of values of a table of fields: which are covered, which are owed, and which are forbidden.

    - fields: field -> the names of its values. The first one is the default.
    - seed: of the draw. Equal seeds give equal rows if the same rows are refused in the same order.
    """

    def __init__(self, fields: Mapping[str, Sequence[str]], seed: int = 0):
        self.fields = {name: tuple(values) for name, values in fields.items()}
        self._draw = random.Random(seed)
        numbers = itertools.count()
        self._number = {(name, value): next(numbers) for name, values in self.fields.items() for value in values}
        self._value = {number: value for value, number in self._number.items()}
        every = (1 << len(self._value)) - 1
        #: Field -> its values. Value -> the values of all other fields.
        self._of = {name: self._mask(name, values) for name, values in self.fields.items()}
        self._others = {number: every & ~self._of[name] for number, (name, _) in self._value.items()}
        #: Value -> values with which it is covered, is covered or in a row that was handed out, or is forbidden.
        self._covered = dict.fromkeys(self._value, 0)
        self._asked = dict.fromkeys(self._value, 0)
        self._never = dict.fromkeys(self._value, 0)
        self._alone = 0  # values that are forbidden whatever the others are
        self._together: list[int] = []  # three values or more that are forbidden together
        #: Pairs for which no row could be made.
        self._given_up = dict.fromkeys(self._value, 0)

    def _mask(self, name: str, values: Iterable[str]) -> int:
        return sum(1 << self._number[name, value] for value in values)

    def _bits(self, row: Mapping[str, str]) -> int:
        return sum(1 << self._number[item] for item in row.items())

    # ---- what became of a row ----

    def cover(self, row: Mapping[str, str]) -> None:
        """Note that a row was tried and taken: its pairs are covered."""
        self._add(self._covered, row)
        self._add(self._asked, row)

    def take_back(self, row: Mapping[str, str]) -> None:
        """Note that a row was refused, or not tried: its pairs are owed again, unless another row covers them."""
        bits = self._bits(row)
        for item in row.items():
            number = self._number[item]
            self._asked[number] &= ~bits | self._covered[number]

    def forbid(self, values: Mapping[str, str]) -> None:
        """Make no further row with all of these values."""
        bits = self._bits(values)
        if len(values) == 1:
            self._alone |= bits
        elif len(values) == 2:
            self._add(self._never, values)
        else:
            self._together.append(bits)

    def _add(self, table: dict[int, int], row: Mapping[str, str]) -> None:
        bits = self._bits(row)
        for item in row.items():
            number = self._number[item]
            table[number] |= bits & self._others[number]

    def again(self) -> None:
        """Owe all pairs once more, in other rows. What was covered stays covered."""
        self._asked = dict.fromkeys(self._value, 0)

    # ---- counts ----

    def counts(self) -> tuple[int, int, int]:
        """Return the number of pairs that are covered, that are not forbidden, and that there are."""
        covered = total = allowed = 0
        for number, others in self._others.items():
            total += others.bit_count()
            allowed += self._allowed(number).bit_count()
            covered += (self._allowed(number) & self._covered[number]).bit_count()
        return covered // 2, allowed // 2, total // 2

    def share(self) -> float:
        """Return the share of the pairs that are covered, of those that are not forbidden."""
        covered, allowed, _ = self.counts()
        return covered / allowed if allowed else 1.0

    def uncovered(self, limit: int = 100) -> list[tuple[Row, Row]]:
        """Return pairs that are neither covered nor forbidden, at most `limit`."""
        found = []
        for number in self._others:
            left = self._allowed(number) & ~self._covered[number] & ~((1 << number) - 1)
            for other in _numbers(left):
                found.append((dict([self._value[number]]), dict([self._value[other]])))
                if len(found) == limit:
                    return found
        return found

    def _allowed(self, number: int) -> int:
        if self._alone >> number & 1:
            return 0
        return self._others[number] & ~self._never[number] & ~self._alone

    # ---- rows ----

    def next(self, fixed: Mapping[str, Sequence[str]] | None = None) -> Row | None:
        """Return the next row, None if no pair is left that a row could have.

        - fixed: field -> the only values that it may have in this row.

        The row counts as asked for until `cover` or `take_back` is called with it.
        """
        within = {name: self._mask(name, values) for name, values in (fixed or {}).items()}
        usable = sum(within.get(name, mask) for name, mask in self._of.items()) & ~self._alone
        while True:
            owed = {n: self._owed(n) & usable for n in _numbers(usable)}
            most = max((left.bit_count() for left in owed.values()), default=0)
            if not most:
                return None
            first = self._draw.choice([n for n, left in owed.items() if left.bit_count() == most])
            second = self._draw.choice(_numbers(owed[first]))
            begun = (1 << first) | (1 << second)
            candidates = [row for _ in range(_CANDIDATES) if (row := self._row(begun, usable))]
            if candidates:
                chosen = max(candidates, key=self._gain)
                made = {name: self._value[(mask & chosen).bit_length() - 1][1] for name, mask in self._of.items()}
                self._add(self._asked, made)
                return made
            self._given_up[first] |= 1 << second
            self._given_up[second] |= 1 << first

    def _owed(self, number: int) -> int:
        return self._allowed(number) & ~self._asked[number] & ~self._given_up[number]

    def _gain(self, row: int) -> int:
        return sum((self._owed(number) & row).bit_count() for number in _numbers(row))

    def _row(self, begun: int, usable: int) -> int | None:
        """Return a row that has these values, and no values that are forbidden together; None if none was found."""
        for _ in range(_ATTEMPTS):
            row = begun
            left = [mask & usable for mask in self._of.values() if not mask & begun]
            self._draw.shuffle(left)
            for mask in left:
                fitting = [number for number in _numbers(mask) if self._fits(number, row)]
                if not fitting:
                    break
                gains = [(self._owed(number) & row).bit_count() for number in fitting]
                best = max(gains)
                row |= 1 << self._draw.choice([n for n, gain in zip(fitting, gains, strict=True) if gain == best])
            else:
                return row
        return None

    def _fits(self, number: int, row: int) -> bool:
        if self._never[number] & row:
            return False
        row |= 1 << number
        return not any(together & ~row == 0 for together in self._together)


def _numbers(bits: int) -> list[int]:
    """Return the numbers of the bits that are set."""
    found = []
    while bits:
        lowest = bits & -bits
        found.append(lowest.bit_length() - 1)
        bits ^= lowest
    return found
