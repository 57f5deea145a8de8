"""A binary arithmetic coder whose probabilities are learned as it goes, in integers: the same bits on every machine.

One function codes a value in both directions. Encoding, it is given the value, and writes; decoding, it ignores what it
is given, reads, and returns what was written: so that the two cannot differ.

The coder keeps an interval ``[low, low + range)`` of 32-bit numbers; each bit takes its share, and the top byte is
written once no carry can change it but by running through bytes that are there already.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}

inner: Any = njit(**_OPTIONS)
"""Compiles a function that makes no array, for other compiled ones.

Else numba counts who holds the arrays it is given, at each call, with atomic operations: a third of all the time.
"""

Integers = NDArray[np.int64]

LOW, RANGE, AT, CODE, DECODES, DAMAGED, FIRST = range(7)
"""Places in a coder's memory: its interval; bytes written, or passed over; the number read, less `LOW`; whether it
reads; whether something was read that no encoder writes; the first of the probabilities it learns."""

_WORD, _TOP = (1 << 32) - 1, 1 << 24
_FINEST = 12  # bits of the longest step of `uniform`

CONTEXTS = 3
"""Contexts that each bit is seen in at once."""

_LIMIT = 255  # times seen after which a probability moves no slower
_LEAST = 32  # of a probability, in 65536ths


def _rounded(values: list[float]) -> Integers:
    """Round numbers that are not near a half, so that no machine's last digit matters."""
    assert all(abs(value - math.floor(value) - 0.5) > 1e-6 for value in values)
    return np.array([round(value) for value in values], np.int64)


# Log-odds are in 256ths, within +-8.
_ODDS = 2048
_SQUASH = np.clip(
    _rounded([65536 / (1 + math.exp(-x / 256)) for x in range(-_ODDS + 1, _ODDS)]), _LEAST, 65536 - _LEAST
)
_STRETCH = np.clip(_rounded([256 * math.log((p + 0.5) / (4096 - p - 0.5)) for p in range(4096)]), -_ODDS + 1, _ODDS - 1)
_RATE = np.array([655360 // (10 * seen + 16) for seen in range(_LIMIT + 1)], np.int64)
_TRUST = np.array([2560 * seen // (10 * seen + 6) for seen in range(_LIMIT + 1)], np.int64)
_WEIGHT = 29491  # .45 in 65536ths: what each context starts with
_LEARNING_SHIFT = 14


class Coder:
    """A coder at the beginning of `data`, which it writes to or reads from.

    Compiled functions take its `memory` and its `data`: one array for all it knows, as each that is passed on costs
    more than a bit does. In it a *probability* has two places: in 65536ths, and how often its bit was seen.

    Parameters
    ----------
    data
        Long enough for all that will be written; or what was.
    decodes
        Whether it reads.
    """

    def __init__(self, data: NDArray[np.uint8], *, decodes: bool) -> None:
        self.data = data
        self.memory = np.zeros(FIRST, np.int64)
        self.memory[RANGE], self.memory[DECODES] = _WORD, decodes
        if decodes:
            for place in range(4):
                self.memory[CODE] = self.memory[CODE] << 8 | (int(data[place]) if place < len(data) else 0)
            self.memory[DAMAGED] = self.memory[CODE] == _WORD

    def learn(self, probabilities: Integers) -> None:
        """Give it new probabilities, in the place of those it had."""
        self.memory = np.concatenate([self.memory[:FIRST], probabilities])

    def finish(self) -> bytes:
        """Return what was written: with zeros after it, a number in the last interval."""
        number, at = self._last(), int(self.memory[AT])
        if number > _WORD:
            _carry(self.data, at)
        self.data[at] = number >> 24 & 255
        return self.data[: at + 1].tobytes().rstrip(b"\0")

    def is_canonical(self) -> bool:
        """Return whether the data is what `finish` returns for all that was read: there is one stream for each."""
        as_long = len(self.data) <= self.memory[AT] + 1 and (len(self.data) == 0 or self.data[-1] != 0)
        as_written = int(self.memory[CODE]) == self._last() - int(self.memory[LOW])
        return not self.memory[DAMAGED] and as_long and as_written

    def information(self) -> float:
        """Return the bits written so far, fractions too."""
        return 8.0 * int(self.memory[AT]) + 32 - math.log2(int(self.memory[RANGE]))

    def _last(self) -> int:
        """Return the number that ends the stream: the least in the interval that has nothing below its top byte."""
        return int(self.memory[LOW]) + _TOP - 1 & ~(_TOP - 1)


@inner
def _carry(data, at):  # type: ignore[no-untyped-def]
    at -= 1
    while data[at] == 255:
        data[at] = 0
        at -= 1
    data[at] += 1


@inner
def _narrow(memory, data, start, size):  # type: ignore[no-untyped-def]
    """Go to the part of the interval at `start`, `size` long."""
    low, width, at, code = memory[LOW] + start, size, memory[AT], memory[CODE] - start
    decodes = memory[DECODES] == 1
    if low > _WORD:
        low &= _WORD
        if not decodes:
            _carry(data, at)
    while width < _TOP:
        if decodes:
            code = (code << 8 | (np.int64(data[at + 4]) if at + 4 < len(data) else 0)) & _WORD
        else:
            data[at] = low >> 24
        low = low << 8 & _WORD
        width <<= 8
        at += 1
    memory[LOW], memory[RANGE], memory[AT], memory[CODE] = low, width, at, code


@inner
def _bit(memory, data, probability, bit):  # type: ignore[no-untyped-def]
    """Code a bit that is 1 with `probability` 65536ths."""
    bound = (memory[RANGE] >> 16) * probability
    if memory[DECODES]:
        bit = 1 if memory[CODE] < bound else 0
    if bit:
        _narrow(memory, data, 0, bound)
    else:
        _narrow(memory, data, bound, memory[RANGE] - bound)
    return bit


@inner
def uniform(memory, data, size, value):  # type: ignore[no-untyped-def]
    """Code ``0 <= value < size`` with all values alike."""
    shift = 0
    while (size - 1) >> shift >> _FINEST:
        shift += _FINEST
    parts, total = ((size - 1) >> shift) + 1, np.int64(0)
    while shift >= 0:
        step = memory[RANGE] // parts
        if memory[DECODES]:
            part = memory[CODE] // step
            if part >= parts:  # in what the division leaves
                memory[DAMAGED], part = 1, parts - 1
        else:
            part = (value >> shift) - (total << _FINEST)
        _narrow(memory, data, part * step, step)
        total = total << _FINEST | part
        parts = np.int64(1) << _FINEST
        shift -= _FINEST
    if total >= size:
        memory[DAMAGED] = 1
        total = np.int64(size - 1)
    return total


@inner
def adaptive(memory, data, place, bit):  # type: ignore[no-untyped-def]
    """Code a bit by one probability, and let it learn."""
    known, times = memory[place], memory[place + 1]
    bit = _bit(memory, data, min(max(known, _LEAST), 65536 - _LEAST), bit)
    memory[place] = known + ((((bit << 16) - known) * _RATE[times]) >> 16)
    memory[place + 1] = min(times + 1, _LIMIT)
    return bit


@inner
def mixed(memory, data, first, second, third, weights, bit):  # type: ignore[no-untyped-def]
    """Code a bit by three probabilities: their weighted log-odds add up; all learn, and so do the weights.

    A probability that has been seen less often counts for less.
    """
    p, q, r = memory[first], memory[second], memory[third]
    m, n, o = memory[first + 1], memory[second + 1], memory[third + 1]
    x, y, z = (
        (_STRETCH[p >> 4] * _TRUST[m]) >> 8,
        (_STRETCH[q >> 4] * _TRUST[n]) >> 8,
        (_STRETCH[r >> 4] * _TRUST[o]) >> 8,
    )
    total = (memory[weights] * x + memory[weights + 1] * y + memory[weights + 2] * z) >> 16
    probability = _SQUASH[min(max(total, -_ODDS + 1), _ODDS - 1) + _ODDS - 1]
    bit = _bit(memory, data, probability, bit)
    error, aim = (bit << 16) - probability, bit * 65535
    memory[weights] += (error * x) >> _LEARNING_SHIFT
    memory[weights + 1] += (error * y) >> _LEARNING_SHIFT
    memory[weights + 2] += (error * z) >> _LEARNING_SHIFT
    memory[first] = p + (((aim - p) * _RATE[m]) >> 16)
    memory[second] = q + (((aim - q) * _RATE[n]) >> 16)
    memory[third] = r + (((aim - r) * _RATE[o]) >> 16)
    memory[first + 1] = min(m + 1, _LIMIT)
    memory[second + 1] = min(n + 1, _LIMIT)
    memory[third + 1] = min(o + 1, _LIMIT)
    return bit


_UNARY = 14  # magnitudes that have a bit each
_LONGEST = 30  # bits of what is beyond
LARGEST = 1 << _LONGEST
"""Magnitudes below it can be written."""

NODES = 2 + _UNARY + _LONGEST
"""Bits of an integer that have a probability each: is it zero, its sign, is it beyond 1, 2 ...; then its length."""


@inner
def integer(memory, data, first, second, third, weights, signed, value):  # type: ignore[no-untyped-def]
    """Code an integer in three contexts: small magnitudes are expected, whatever they turn out to be."""
    size = abs(value)
    if mixed(memory, data, first, second, third, weights, np.int64(size > 0)) == 0:
        return np.int64(0)
    negative = np.int64(0)
    if signed:
        negative = mixed(memory, data, first + 2, second + 2, third + 2, weights + 3, np.int64(value < 0))
    least, length, more = np.int64(1), np.int64(0), True
    for node in range(2, NODES):
        unary = node < _UNARY + 1
        bit = np.int64(size > least) if unary else np.int64((size - _UNARY + 1) >> (length + 1) > 0)
        at = 2 * node
        if not mixed(memory, data, first + at, second + at, third + at, weights + 3 * node, bit):
            more = not unary
            break
        if unary:
            least += 1
        else:
            length += 1
    if more:
        top = np.int64(1) << length
        least += uniform(memory, data, top, size - _UNARY + 1 - top) + top - 1
    if least >= LARGEST:
        memory[DAMAGED] = 1
    return -least if negative else least


@inner
def tree(memory, data, first, second, third, weights, bits, value):  # type: ignore[no-untyped-def]
    """Code the `bits` bits of a value, each by those above it."""
    at = np.int64(1)
    for k in range(bits - 1, -1, -1):
        node = at - 1
        bit = mixed(
            memory, data, first + 2 * node, second + 2 * node, third + 2 * node, weights + 3 * node, (value >> k) & 1
        )
        at = 2 * at + bit
    return at - (np.int64(1) << bits)


class Models:
    """Where the probabilities of some bits are, each in several contexts, and how far each context is believed.

    Parameters
    ----------
    contexts
        How many there are of each of the `CONTEXTS` kinds.
    nodes
        Different bits in each.
    usual
        How often each is 1, in 256ths, as far as that is known: what the probabilities begin with.
    """

    def __init__(self, *contexts: int, nodes: int, usual: tuple[int, ...] = ()) -> None:
        assert len(contexts) == CONTEXTS
        begin = np.tile(np.array([1 << 15, 1], np.int64), nodes)
        begin[: 2 * len(usual) : 2] = np.array(usual, np.int64) << 8
        probabilities = np.tile(begin, sum(contexts))
        self.fresh = np.concatenate([probabilities, np.full(nodes * CONTEXTS, _WEIGHT, np.int64)])
        first, second, _ = (FIRST + 2 * nodes * int(before) for before in np.cumsum(contexts))
        self.starts = np.array([FIRST, first, second, FIRST + len(probabilities)], np.int64)
