"""Where Gaussians are, as a set: how many lie in each half of a box, and so on down.

The order of a set carries no information, and none is spent on it. For ``N`` points in ``M`` cells that saves about
``log2(N / e)`` bits each. Any number of axes; those of a tile are y and x.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numba import njit

from smartsplat.codec.coder import DAMAGED, DECODES, FIRST, Coder, Integers, adaptive, inner, uniform

_jit: Any = njit(cache=True, nogil=True, error_model="numpy")

SIDE_LIMIT = 1 << 20
"""Cells along a side, at most."""

_LOOKS = 8  # how many in a box are looked at for neighbours
_FEW = 15  # up to so many in a box, each way to share them out has its own probability
_EVENNESS = 4  # of the shares expected at first: parameter of the beta distribution
_BELIEF = 8  # how many boxes' worth what is expected at first counts for
_SIDE = _FEW + 1
_LENGTHS, _STEPS = 40, 48  # of deviations in fuller boxes: lengths of the count, and steps of the deviation


def _expected() -> Integers:
    """Return the probability that of `n` in a box at most ``(low + high) // 2`` lie in its first half, given at least
    `low` and at most `high`, in 65536ths, at ``(n, low, high)``: beta-binomial, in exact arithmetic.
    """
    odds = np.full((_SIDE, _SIDE, _SIDE), 1 << 15, np.int64)
    for n in range(1, _SIDE):
        ways = [math.comb(k + _EVENNESS - 1, k) * math.comb(n - k + _EVENNESS - 1, n - k) for k in range(n + 1)]
        for low in range(n + 1):
            for high in range(low + 1, n + 1):
                first, all_ = sum(ways[low : (low + high) // 2 + 1]), sum(ways[low : high + 1])
                odds[n, low, high] = round(Fraction(65536 * first, all_))
    return odds.ravel()


_MANY = FIRST + 2 * _SIDE**3  # where the probabilities of fuller boxes are
_FRESH = np.concatenate(
    [
        np.stack([_expected(), np.full(_SIDE**3, _BELIEF)], axis=1).ravel(),
        np.tile([1 << 15, 0], _LENGTHS * _STEPS),
    ]
)


def code_positions(coder: Coder, cells: Integers, extents: Integers) -> Integers:
    """Code the cells, ``(N, axes)`` with ``0 <= cells < extents``; return the order in which they were coded.

    Decoding, `cells` is filled, in that order; it is the same for cells that are permuted, but for equal ones.
    """
    coder.learn(_FRESH)
    order = np.arange(len(cells))
    _code(coder.memory, coder.data, cells, extents, order)
    return order


@_jit
def _code(memory, data, cells, extents, order):  # type: ignore[no-untyped-def]
    axes = cells.shape[1]
    decodes = memory[DECODES] == 1
    boxes, ranges = np.empty((64 * axes + 2, 2, axes), np.int64), np.empty((64 * axes + 2, 2), np.int64)
    second = np.empty(len(cells), np.int64)
    boxes[0, 0], boxes[0, 1] = 0, extents
    ranges[0, 0], ranges[0, 1] = 0, len(cells)
    waiting = 1
    while waiting > 0 and not memory[DAMAGED]:
        waiting -= 1
        start, stop = ranges[waiting]
        low, high = boxes[waiting]
        count = stop - start
        axis = 0
        for other in range(1, axes):
            if high[other] - low[other] > high[axis] - low[axis]:
                axis = other
        if count == 1 or (count > 1 and high[axis] - low[axis] == 1):
            for place in range(start, stop):
                for other in range(axes):
                    at = uniform(memory, data, high[other] - low[other], cells[order[place], other] - low[other])
                    if decodes:
                        cells[place, other] = low[other] + at
            continue
        if count == 0:
            continue
        middle = (low[axis] + high[axis]) // 2
        split = start
        if not decodes:
            rest = 0
            for place in range(start, stop):  # in a stable way
                if cells[order[place], axis] < middle:
                    order[split] = order[place]
                    split += 1
                else:
                    second[rest] = order[place]
                    rest += 1
            order[split:stop] = second[:rest]
        split = start + _share(memory, data, count, split - start)
        boxes[waiting + 1] = boxes[waiting]
        ranges[waiting, 0], ranges[waiting, 1], boxes[waiting, 0, axis] = split, stop, middle
        ranges[waiting + 1, 0], ranges[waiting + 1, 1], boxes[waiting + 1, 1, axis] = start, split, middle
        waiting += 2


@inner
def _share(memory, data, count, first):  # type: ignore[no-untyped-def]
    """Code how many of `count` lie in the first half."""
    if count <= _FEW:
        low, high = np.int64(0), count
        while low < high:
            middle = (low + high) // 2
            place = FIRST + 2 * ((count * _SIDE + low) * _SIDE + high)
            if adaptive(memory, data, place, np.int64(first <= middle)):
                high = middle
            else:
                low = middle + 1
        return low
    length = np.int64(0)
    while count >> (length + 1):
        length += 1
    shift = length // 2 - 1
    half = count // 2
    away = abs(first - half)
    base = _MANY + 2 * length * _STEPS
    steps = np.int64(0)
    while steps <= (count - half) >> shift and adaptive(
        memory, data, base + 2 * min(steps, _STEPS - 1), np.int64(away >> shift > steps)
    ):
        steps += 1
    away = (steps << shift) + uniform(memory, data, np.int64(1) << shift, away & ((np.int64(1) << shift) - 1))
    if away:
        away = -away if uniform(memory, data, 2, np.int64(first < half)) else away
    first = half + away
    if first < 0 or first > count:
        memory[DAMAGED] = 1
        return half
    return first


@_jit
def find_neighbors(cells, extents, neighbors, weights):  # type: ignore[no-untyped-def]
    """Fill the nearest of those before each one, nearest first, and what each counts for; -1 and 0 where there is none.

    Only the boxes around are looked at, and the latest few in each, so that no crowd takes long. Returns a box's side.
    """
    count, axes = cells.shape
    volume = np.int64(1)
    for axis in range(axes):
        volume *= extents[axis]
    side = np.int64(1)
    while side**axes * max(count, 1) < volume:
        side *= 2
    shape = np.empty(axes, np.int64)
    total = 1
    for axis in range(axes):
        shape[axis] = extents[axis] // side + 3
        total *= shape[axis]
    latest, before = np.full(total, -1, np.int64), np.full(count, -1, np.int64)
    most = neighbors.shape[1]
    distances = np.zeros(most, np.int64)
    for i in range(count):
        found = 0
        for around in range(3**axes):
            place, rest = np.int64(0), around
            for axis in range(axes):
                place = place * shape[axis] + cells[i, axis] // side + rest % 3
                rest //= 3
            j, looked = latest[place], 0
            while j >= 0 and looked < _LOOKS:
                distance = np.int64(0)
                for axis in range(axes):
                    distance += (cells[i, axis] - cells[j, axis]) ** 2
                if found < most or distance < distances[most - 1]:
                    at = min(found, most - 1)
                    while at > 0 and distances[at - 1] > distance:
                        distances[at], neighbors[i, at] = distances[at - 1], neighbors[i, at - 1]
                        at -= 1
                    distances[at], neighbors[i, at] = distance, j
                    found = min(found + 1, most)
                j = before[j]
                looked += 1
        for k in range(most):
            if k < found:
                weights[i, k] = 64 * side * side // (distances[k] + side * side // 3 + 1) + 1
            else:
                neighbors[i, k], weights[i, k] = -1, 0
        place = np.int64(0)
        for axis in range(axes):
            place = place * shape[axis] + cells[i, axis] // side + 1
        before[i], latest[place] = latest[place], i
    return side
