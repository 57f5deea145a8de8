"""What Gaussians are like: their precisions, areas, colors, aspects and rotations, each seen beside its neighbours.

One quantity after the other is coded for all Gaussians, in the order of their positions. What is known by then of the
Gaussian itself, and of the nearest ones before it, says which probabilities to use. All of it in integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from smartsplat.codec import priors
from smartsplat.codec.coder import DAMAGED, NODES, Coder, Integers, Models, inner, integer, tree, uniform
from smartsplat.codec.positions import find_neighbors

_jit: Any = njit(cache=True, nogil=True, error_model="numpy")

_NEIGHBORS = 4
_HIGH = 7  # precisions from here on are not told apart
_WIDE = 4  # nor areas so many coarsest steps from the middle
_ANGLE_BITS = 16
LOW_TURNS = 16
HIGHEST_PRECISION = 12
LONGEST_ASPECT = 1 << 16  # in coarsest steps; nothing that is written comes near
_TREE_BITS = 4  # of a rotation, coded with probabilities; the rest is as good as random

# Where a value goes from one context to the next; those of averages in 16ths.
_PRECISION_EDGES = np.array([3, 8, 16, 24, 36, 52], np.int64)
_NEARNESS_EDGES = np.array([60, 100, 140, 180], np.int64)
_AREA_EDGES = np.array([-64, -40, -24, -8, 8, 24, 48], np.int64)
_LUMA_EDGES = np.array([16, 32, 56, 80, 128, 192, 320], np.int64)
_CHROMA_EDGES = np.array([5, 11, 19, 32, 56, 96], np.int64)
_OWN_EDGES = np.array([1, 2, 4, 7, 12, 20], np.int64)
_ASPECT_EDGES = np.array([8, 16, 26, 40, 60, 90], np.int64)
_STRENGTH_EDGES = np.array([64, 200, 600, 1500, 4000], np.int64)
_ELONGATION_EDGES = np.array([1, 2, 3, 5], np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attributes:
    """Integers of ``N`` Gaussians, beside their cells; decoding fills them in place.

    Parameters
    ----------
    precisions
        ``(N,)``, not negative: bits that the shapes have beyond the coarsest steps.
    areas, aspects
        ``(N,)``, in steps of their precision; aspects are not negative.
    rotations
        ``(N,)``, in ``[0, 2^b)``, ``b`` as `rotation_bits` says.
    colors
        ``(N, C)``.
    places
        ``(N, axes)``: where in its cell each mean lies, in ``[0, 2^b)``, ``b`` the precision less `PLACE_LAG`.
    """

    precisions: Integers
    areas: Integers
    aspects: Integers
    rotations: Integers
    colors: Integers
    places: Integers


PLACE_LAG = 1
"""Means have so many bits fewer beyond their cells than shapes have beyond their coarsest steps."""


def code_attributes(
    coder: Coder,
    cells: Integers,
    extents: Integers,
    values: Attributes,
    *,
    middle: int,
    turns: Integers,
    ended: Any = lambda _name: None,
) -> None:
    """Code what belongs to cells, which are in coded order.

    Parameters
    ----------
    middle
        Of the areas, about, in coarsest steps.
    turns
        See `rotation_bits`.
    ended
        Told the name of each quantity when it is done.
    """
    neighbors, weights = (np.empty((len(cells), _NEIGHBORS), np.int64) for _ in range(2))
    find_neighbors(cells, extents, neighbors, weights)
    precisions, shown = values.precisions, (neighbors, weights, values.precisions)

    def learning(models: Models) -> tuple[Any, ...]:
        coder.learn(models.fresh)
        return coder.memory, coder.data, models.starts

    _code_precisions(*learning(_PRECISIONS), *shown)
    ended("precision")
    areas = np.empty_like(values.areas)  # in coarsest steps, from the middle
    _code_areas(*learning(_AREAS), *shown, values.areas, areas, middle)
    ended("area")
    for band in range(values.colors.shape[1]):
        _code_colors(*learning(_FIRST_COLORS if band == 0 else _OTHER_COLORS), *shown, areas, values.colors, band)
        ended("color")
    aspects = np.empty_like(values.aspects)
    _code_aspects(*learning(_ASPECTS), *shown, areas, values.aspects, aspects)
    ended("aspect")
    _code_rotations(*learning(_ROTATIONS), *shown, values.aspects, aspects, values.rotations, turns)
    ended("rotation")
    _code_places(coder.memory, coder.data, precisions, values.places)
    ended("position")


_PRECISIONS = Models(8, 9, 6, nodes=NODES, usual=priors.PRECISION)
_AREAS = Models(8 * 6, 9, 10, nodes=NODES, usual=priors.AREA)
_FIRST_COLORS = Models(8 * 9, 9, 3 * 8, nodes=NODES, usual=priors.FIRST_COLOR)
_OTHER_COLORS = Models(7 * 3, 8 * 7, 9 * 5, nodes=NODES, usual=priors.OTHER_COLOR)
_ASPECTS = Models(8, 9, 8, nodes=NODES, usual=priors.ASPECT)
_ROTATIONS = Models(7 * 5, 7, 5 * 8, nodes=_TREE_BITS << _TREE_BITS, usual=priors.ROTATION)


@inner
def rotation_bits(aspect, precision, turns):  # type: ignore[no-untyped-def]
    """Return the bits of a rotation: none for a round one, else one more for each of `turns` that it is as long as.

    `turns` are aspects in 65536ths of the coarsest step; the first `LOW_TURNS` stand for bits below 0, which count
    where a high precision adds to them.
    """
    if aspect == 0:
        return 0
    length, bits = (aspect << 16) >> precision, precision - LOW_TURNS
    for turn in turns:
        if length < turn:
            break
        bits += 1
    return min(max(bits, 1), _ANGLE_BITS)


@_jit
def all_rotation_bits(aspects, precisions, turns):  # type: ignore[no-untyped-def]
    """Return the bits of each rotation."""
    bits = np.empty(len(aspects), np.int64)
    for i in range(len(aspects)):
        bits[i] = rotation_bits(aspects[i], precisions[i], turns)
    return bits


@inner
def _bucket(value, edges):  # type: ignore[no-untyped-def]
    found = 0
    while found < len(edges) and value >= edges[found]:
        found += 1
    return found


@inner
def _average(values, neighbors, weights, i):  # type: ignore[no-untyped-def]
    """Return 16 times the weighted average of some neighbours' values, rounded down; 0 if there is no neighbour."""
    total, weight = np.int64(0), np.int64(0)
    for k in range(_NEIGHBORS):
        if weights[i, k] > 0:
            total += weights[i, k] * values[neighbors[i, k]]
            weight += weights[i, k]
    return 16 * total // weight if weight else np.int64(0)


@_jit
def _code_precisions(memory, data, starts, neighbors, weights, precisions):  # type: ignore[no-untyped-def]
    for i in range(len(precisions)):
        nearest = neighbors[i, 0]
        average = _bucket(_average(precisions, neighbors, weights, i), _PRECISION_EDGES)
        first = starts[0] + 2 * NODES * (average if nearest >= 0 else 7)
        second = starts[1] + 2 * NODES * (min(precisions[nearest], _HIGH) if nearest >= 0 else 8)
        third = starts[2] + 2 * NODES * (_bucket(weights[i, 0], _NEARNESS_EDGES) if nearest >= 0 else 5)
        found = integer(memory, data, first, second, third, starts[3], False, precisions[i])
        if found > HIGHEST_PRECISION:
            memory[DAMAGED] = 1
            found = np.int64(0)
        precisions[i] = found


@_jit
def _code_areas(memory, data, starts, neighbors, weights, precisions, areas, coarse, middle):  # type: ignore[no-untyped-def]
    for i in range(len(areas)):
        nearest, precision = neighbors[i, 0], precisions[i]
        near = _bucket(weights[i, 0], _NEARNESS_EDGES) if nearest >= 0 else 5
        average = _bucket(_average(coarse, neighbors, weights, i), _AREA_EDGES)
        first = starts[0] + 2 * NODES * (min(precision, _HIGH) * 6 + near)
        second = starts[1] + 2 * NODES * (average if nearest >= 0 else 8)
        third = starts[2] + 2 * NODES * (_limited(coarse[nearest]) if nearest >= 0 else 9)
        coarse[i] = integer(memory, data, first, second, third, starts[3], True, (areas[i] >> precision) - middle)
        areas[i] = _refined(memory, data, coarse[i] + middle, precision, areas[i])


@_jit
def _code_colors(memory, data, starts, neighbors, weights, precisions, coarse, colors, band):  # type: ignore[no-untyped-def]
    sizes = np.abs(colors[:, band])
    for i in range(len(colors)):
        nearest, precision = neighbors[i, 0], min(precisions[i], _HIGH)
        average = _average(sizes, neighbors, weights, i)
        before = colors[nearest, band] if nearest >= 0 else np.int64(0)
        if band == 0:
            first = starts[0] + 2 * NODES * (precision * 9 + _limited(coarse[i]))
            second = starts[1] + 2 * NODES * (_bucket(average, _LUMA_EDGES) if nearest >= 0 else 8)
            third = starts[2] + 2 * NODES * (precision * 3 + _sign(before))
        else:
            luma, last = colors[i, 0], colors[i, band - 1]
            agrees = _sign(before * colors[nearest, 0]) if nearest >= 0 else 1
            first = starts[0] + 2 * NODES * (_bucket(average, _CHROMA_EDGES) * 3 + _sign(luma))
            second = starts[1] + 2 * NODES * (precision * 7 + _bucket(abs(luma), _OWN_EDGES))
            third = starts[2] + 2 * NODES * ((agrees * 3 + _sign(last)) * 5 + _bucket(abs(last), _ELONGATION_EDGES))
        colors[i, band] = integer(memory, data, first, second, third, starts[3], True, colors[i, band])
        sizes[i] = abs(colors[i, band])


@_jit
def _code_aspects(memory, data, starts, neighbors, weights, precisions, areas, aspects, coarse):  # type: ignore[no-untyped-def]
    for i in range(len(aspects)):
        precision = precisions[i]
        average = _bucket(_average(coarse, neighbors, weights, i), _ASPECT_EDGES)
        first = starts[0] + 2 * NODES * min(precision, _HIGH)
        second = starts[1] + 2 * NODES * _limited(areas[i])
        third = starts[2] + 2 * NODES * (average if neighbors[i, 0] >= 0 else 7)
        coarse[i] = integer(memory, data, first, second, third, starts[3], False, aspects[i] >> precision)
        if coarse[i] >= LONGEST_ASPECT:
            memory[DAMAGED], coarse[i] = 1, 0
        aspects[i] = _refined(memory, data, coarse[i], precision, aspects[i])


@_jit
def _code_rotations(memory, data, starts, neighbors, weights, precisions, aspects, coarse, rotations, turns):  # type: ignore[no-untyped-def]
    """Code rotations from that of the neighbour that shows a direction best: an edge goes on."""
    angles = np.zeros(len(rotations), np.int64)
    for i in range(len(rotations)):
        bits = rotation_bits(aspects[i], precisions[i], turns)
        if bits == 0:
            rotations[i] = 0
            continue
        strongest, along = np.int64(0), np.int64(0)
        for k in range(_NEIGHBORS):
            if weights[i, k] > 0:
                strength = weights[i, k] * coarse[neighbors[i, k]] ** 2
                if strength > strongest:
                    strongest, along = strength, angles[neighbors[i, k]]
        strength, length = _bucket(strongest, _STRENGTH_EDGES), _bucket(coarse[i], _ELONGATION_EDGES)
        if strongest == 0:
            strength = 6
        known = min(bits, _TREE_BITS)
        first = starts[0] + 2 * (_TREE_BITS << _TREE_BITS) * (strength * 5 + length)
        second = starts[1] + 2 * (_TREE_BITS << _TREE_BITS) * strength
        third = starts[2] + 2 * (_TREE_BITS << _TREE_BITS) * (length * 8 + min(precisions[i], _HIGH))
        mask, offset = (1 << bits) - 1, along >> (_ANGLE_BITS - bits)
        turned = (rotations[i] - offset) & mask
        base = (known - 1) << _TREE_BITS
        top = tree(
            memory,
            data,
            first + 2 * base,
            second + 2 * base,
            third + 2 * base,
            starts[3] + 3 * base,
            known,
            turned >> (bits - known),
        )
        turned = _refined(memory, data, top, bits - known, turned)
        rotations[i] = (turned + offset) & mask
        angles[i] = (rotations[i] << (_ANGLE_BITS - bits)) + (1 << (_ANGLE_BITS - bits) >> 1)


@_jit
def _code_places(memory, data, precisions, places):  # type: ignore[no-untyped-def]
    for i in range(len(places)):
        size = np.int64(1) << max(0, precisions[i] - PLACE_LAG)
        for axis in range(places.shape[1]):
            places[i, axis] = uniform(memory, data, size, places[i, axis])


@inner
def _refined(memory, data, top, bits, value):  # type: ignore[no-untyped-def]
    """Code the low `bits` bits of a value, whose others are `top`; return it."""
    size = np.int64(1) << bits
    return top * size + uniform(memory, data, size, value & (size - 1))


@inner
def _limited(area):  # type: ignore[no-untyped-def]
    return min(max(area, -_WIDE), _WIDE) + _WIDE


@inner
def _sign(value):  # type: ignore[no-untyped-def]
    return 1 if value == 0 else 2 if value > 0 else 0
