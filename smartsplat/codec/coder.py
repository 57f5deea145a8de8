"""A binary arithmetic coder whose probabilities are learned as it goes, in integers: the same bits on every machine.

One function codes a value in both directions. Encoding, it is given the value, and writes; decoding, it ignores what it
is given, reads, and returns what was written: so that the two cannot differ.

The coder keeps an interval ``[low, low + range)`` of 32-bit numbers; each bit takes its share of it, and the top byte is
written once no carry can change it but by running through bytes that are there already.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_jit: Any = njit(cache=True, nogil=True, error_model="numpy")

Integers = NDArray[np.int64]

LOW, RANGE, AT, CODE, DECODES, DAMAGED = range(6)
"""Places in the coder's state: its interval; bytes written, or passed over; the number read, less `LOW`; whether it
reads; whether something was read that no encoder writes."""

_STATE = 6
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


def new_coder(data: NDArray[np.uint8], *, decodes: bool) -> Integers:
    """Return the state of a coder at the beginning of `data`, which it writes to or reads from."""
    state = np.zeros(_STATE, np.int64)
    state[RANGE], state[DECODES] = _WORD, decodes
    if decodes:
        for place in range(4):
            state[CODE] = state[CODE] << 8 | (int(data[place]) if place < len(data) else 0)
    return state


def finish(state: Integers, data: NDArray[np.uint8]) -> bytes:
    """Return what was written: with zeros after it, a number in the last interval."""
    number = int(state[LOW]) + _TOP - 1 & ~(_TOP - 1)
    if number > _WORD:
        _carry(data, state[AT])
    data[state[AT]] = number >> 24 & 255
    return data[: state[AT] + 1].tobytes().rstrip(b"\0")


def is_canonical(state: Integers, data: NDArray[np.uint8]) -> bool:
    """Return whether these are the bytes that `finish` returns for all that was read: there is one stream for each."""
    number = int(state[LOW]) + _TOP - 1 & ~(_TOP - 1)
    as_long = len(data) <= state[AT] + 1 and (len(data) == 0 or data[-1] != 0)
    return not state[DAMAGED] and as_long and int(state[CODE]) == number - int(state[LOW])


def information(state: Integers) -> float:
    """Return the bits written so far, fractions too."""
    return 8.0 * int(state[AT]) + 32 - math.log2(int(state[RANGE]))


@_jit
def _carry(data, at):  # type: ignore[no-untyped-def]
    at -= 1
    while data[at] == 255:
        data[at] = 0
        at -= 1
    data[at] += 1


@_jit
def _narrow(state, data, start, size):  # type: ignore[no-untyped-def]
    """Go to the part of the interval at `start`, `size` long."""
    low, width, at, code = state[LOW] + start, size, state[AT], state[CODE] - start
    decodes = state[DECODES] == 1
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
    state[LOW], state[RANGE], state[AT], state[CODE] = low, width, at, code


@_jit
def _bit(state, data, probability, bit):  # type: ignore[no-untyped-def]
    """Code a bit that is 1 with `probability` 65536ths."""
    bound = (state[RANGE] >> 16) * probability
    if state[DECODES]:
        bit = 1 if state[CODE] < bound else 0
    if bit:
        _narrow(state, data, 0, bound)
    else:
        _narrow(state, data, bound, state[RANGE] - bound)
    return bit


@_jit
def uniform(state, data, size, value):  # type: ignore[no-untyped-def]
    """Code ``0 <= value < size`` with all values alike."""
    shift = 0
    while (size - 1) >> shift >> _FINEST:
        shift += _FINEST
    parts, total = ((size - 1) >> shift) + 1, np.int64(0)
    while shift >= 0:
        step = state[RANGE] // parts
        part = min(state[CODE] // step, parts - 1) if state[DECODES] else (value >> shift) - (total << _FINEST)
        _narrow(state, data, part * step, step)
        total = total << _FINEST | part
        parts = np.int64(1) << _FINEST
        shift -= _FINEST
    if total >= size:
        state[DAMAGED] = 1
        total = np.int64(size - 1)
    return total


@_jit
def adaptive(state, data, odds, seen, place, bit):  # type: ignore[no-untyped-def]
    """Code a bit by one probability, that at `place`, and let it learn."""
    probability = min(max(odds[place], _LEAST), 65536 - _LEAST)
    bit = _bit(state, data, probability, bit)
    odds[place] += (((bit << 16) - odds[place]) * _RATE[seen[place]]) >> 16
    seen[place] = min(seen[place] + 1, _LIMIT)
    return bit


@_jit
def mixed(state, data, odds, seen, weights, places, node, bit):  # type: ignore[no-untyped-def]
    """Code a bit by several probabilities, those at ``places + node``: their weighted log-odds add up; all learn.

    A probability that has been seen less often counts for less.
    """
    total = 0
    for k in range(CONTEXTS):
        place = places[k] + node
        total += weights[node, k] * ((_STRETCH[odds[place] >> 4] * _TRUST[seen[place]]) >> 8)
    total = min(max(total >> 16, -_ODDS + 1), _ODDS - 1)
    probability = _SQUASH[total + _ODDS - 1]
    bit = _bit(state, data, probability, bit)
    error, aim = (bit << 16) - probability, bit * 65535
    for k in range(CONTEXTS):
        place = places[k] + node
        known, times = odds[place], seen[place]
        weights[node, k] += (error * ((_STRETCH[known >> 4] * _TRUST[times]) >> 8)) >> _LEARNING_SHIFT
        odds[place] = known + (((aim - known) * _RATE[times]) >> 16)
        seen[place] = min(times + 1, _LIMIT)
    return bit


_UNARY = 14  # magnitudes that have a bit each
_LONGEST = 30  # bits of what is beyond
LARGEST = 1 << _LONGEST
"""Magnitudes below it can be written."""

NODES = 2 + _UNARY + _LONGEST
"""Bits of an integer that have a probability each: is it zero, its sign, is it beyond 1, 2 ...; then its length."""


@_jit
def integer(state, data, odds, seen, weights, places, signed, value):  # type: ignore[no-untyped-def]
    """Code an integer by the contexts at `places`: small magnitudes are expected, whatever they turn out to be."""
    size = abs(value)
    if mixed(state, data, odds, seen, weights, places, 0, np.int64(size > 0)) == 0:
        return np.int64(0)
    negative = np.int64(0)
    if signed:
        negative = mixed(state, data, odds, seen, weights, places, 1, np.int64(value < 0))
    least = np.int64(1)
    while least < _UNARY and mixed(state, data, odds, seen, weights, places, 1 + least, np.int64(size > least)):
        least += 1
    if least == _UNARY:
        beyond = size - _UNARY + 1
        length = 0
        while length < _LONGEST - 1 and mixed(
            state, data, odds, seen, weights, places, 1 + _UNARY + length, np.int64(beyond >> (length + 1) > 0)
        ):
            length += 1
        top = np.int64(1) << length
        least += top + uniform(state, data, top, beyond - top) - 1
    return -least if negative else least


@_jit
def tree(state, data, odds, seen, weights, places, bits, first, value):  # type: ignore[no-untyped-def]
    """Code the `bits` bits of a value, each by those above it; nodes from `first` on, ``2^bits - 1`` of them."""
    at = np.int64(1)
    for k in range(bits - 1, -1, -1):
        at = 2 * at + mixed(state, data, odds, seen, weights, places, first + at - 1, (value >> k) & 1)
    return at - (np.int64(1) << bits)


class Models:
    """Probabilities of some bits, each in several contexts, and how far each context is believed.

    Parameters
    ----------
    sizes
        How many different contexts there are of each of the `CONTEXTS` kinds.
    nodes
        Different bits in each.
    """

    def __init__(self, sizes: tuple[int, ...], nodes: int) -> None:
        assert len(sizes) == CONTEXTS
        self.starts = np.cumsum([0, *sizes[:-1]]).astype(np.int64) * nodes
        self.nodes = nodes
        self.odds = np.full(sum(sizes) * nodes, 1 << 15, np.int64)
        self.seen = np.zeros(sum(sizes) * nodes, np.int64)
        self.weights = np.full((nodes, CONTEXTS), _WEIGHT, np.int64)
