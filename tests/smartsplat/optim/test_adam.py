"""Adam against the published recipe written out in float64, and that it returns the best it saw."""

from __future__ import annotations

import math
from dataclasses import replace

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.optim.adam import Rates, adam
from smartsplat.optim.host import HostMachine
from smartsplat.optim.machine import Bounds
from smartsplat.render import operators, reference, render
from smartsplat.render.cpu import to_planes

few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)
SHAPE = (26, 31)
REGION = Region(y0=0, y1=SHAPE[0], x0=0, x1=SHAPE[1])
RATES = {"mean": 0.1, "scale": 0.05, "rotation": 0.05, "color": 0.02}


def kept(gaussians):
    last = np.nextafter(np.float32(SHAPE), np.float32(0))
    return replace(
        gaussians, means=np.clip(gaussians.means, 0, last), scales=np.clip(gaussians.scales, np.float32(0.35), 20)
    )


def bounds_for(count, *, inner=0.0, min_scale=0.35, max_scale=20.0):
    """Return bounds whose means lie `inner` px within the region."""
    low = np.full((count, 2), inner, np.float32)
    return Bounds(low=low, high=np.float32(SHAPE) - low, min_scale=min_scale, max_scale=max_scale)


def squares_to(target):
    """Return half the sum of squares to a target, as a loss of planes."""

    def loss(image):
        residual = image - target
        return 0.5 * float(np.square(residual, dtype=np.float64).sum()), residual

    return loss


class Watched:
    """A loss that keeps what it returned, and can fail at one call."""

    def __init__(self, loss, *, bad_at=None, bad=math.nan):
        self.values, self._loss, self._bad_at, self._bad = [], loss, bad_at, bad

    def __call__(self, image):
        value, slope = self._loss(image)
        self.values.append(self._bad if len(self.values) == self._bad_at else value)
        return self.values[-1], slope


@pytest.fixture
def drawn(monkeypatch):
    """Return a list that takes each state as it is drawn, after the first, of which planes are made only."""
    states = []

    def watching(machine, gaussians, region):
        states.append(gaussians)
        return operators(gaussians, region)

    monkeypatch.setattr(HostMachine, "operators", watching)
    return states


def run(own, loss, *, steps, rates, bounds=None):
    return adam(own, loss, region=REGION, bounds=bounds or bounds_for(len(own)), steps=steps, rates=rates)


def noise(seed, bands=3):
    return np.random.default_rng(seed).random((*SHAPE, bands)).astype(np.float32)


def assert_same_bits(a, b):
    np.testing.assert_array_equal(a.to_rows(), b.to_rows())


def rates_of(relative, factor=1.0):
    return Rates(**{name: factor * rate for name, rate in RATES.items()}, relative=relative)


families = st.sampled_from(["ordinary", "tiny", "huge", "needles", "mixed"])


# ---- what it returns ----


@given(seeds, families, st.sampled_from([1, 3]), st.booleans(), st.floats(0.01, 50), st.integers(0, 8))
@settings(deadline=None, max_examples=40)
def test_the_best_state_on_the_way_is_returned(gaussians_of, seed, family, bands, relative, wildness, steps):
    own = kept(gaussians_of(seed, 12, family=family, bands=bands, shape=SHAPE))
    loss = Watched(squares_to(to_planes(noise(seed, bands))))
    best = run(own, loss, steps=steps, rates=rates_of(relative, wildness))
    assert len(loss.values) == steps + 1  # the last state counts, too
    assert loss(to_planes(render(best, REGION)))[0] == min(loss.values)
    assert best.is_finite()
    if min(loss.values) == loss.values[0]:
        assert_same_bits(best, own)


def test_the_last_state_is_returned_if_it_is_the_best(gaussians_of, drawn):
    own = kept(gaussians_of(0, 12, family="ordinary", shape=SHAPE))
    loss = Watched(squares_to(to_planes(noise(0))))
    best = run(own, loss, steps=6, rates=rates_of(True, 0.1))
    assert (np.diff(loss.values) < 0).all()  # small steps downhill
    assert best is drawn[-1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_loss_that_is_no_number_ends_it_with_the_best_before(gaussians_of, drawn, at, bad):
    own = kept(gaussians_of(0, 12, family="ordinary", shape=SHAPE))
    loss = Watched(squares_to(to_planes(noise(0))), bad_at=at, bad=bad)
    best = run(own, loss, steps=6, rates=rates_of(True, 0.1))
    assert len(loss.values) == at + 1
    assert_same_bits(best, drawn[at] if at else own)  # the first is drawn twice: planes are made of it, then it is


@given(seeds, families, st.booleans(), st.floats(1, 100))
@few
def test_no_state_leaves_the_bounds_however_large_the_steps(gaussians_of, seed, family, relative, wildness):
    bounds = bounds_for(12, inner=2.0, min_scale=0.5, max_scale=6.0)
    own = kept(gaussians_of(seed, 12, family=family, shape=SHAPE))
    last = np.nextafter(bounds.high, np.float32(0))
    own = replace(own, means=np.clip(own.means, bounds.low, last), scales=np.clip(own.scales, 0.5, 6))
    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostMachine, "operators", lambda _, one, region: states.append(one) or operators(one, region))
        run(own, squares_to(to_planes(noise(seed))), steps=5, rates=rates_of(relative, wildness), bounds=bounds)
    assert len(states) == 7
    for state in states:
        assert state.is_finite()
        assert (state.means >= bounds.low).all()
        assert (state.means < bounds.high).all()
        assert (state.scales >= 0.5).all()
        assert (state.scales <= 6).all()


@pytest.mark.parametrize("relative", [True, False])
def test_without_steps_or_without_a_slope_nothing_moves(gaussians_of, drawn, relative):
    own = kept(gaussians_of(0, 12, shape=SHAPE))
    loss = squares_to(to_planes(noise(0)))
    assert_same_bits(run(own, loss, steps=0, rates=rates_of(relative)), own)
    run(own, lambda image: (1.0, np.zeros_like(image)), steps=3, rates=rates_of(relative))
    assert_same_bits(drawn[-1], own)


def test_gaussians_near_those_of_an_image_come_nearer(gaussians_of):
    rng = np.random.default_rng(1)
    truth = kept(gaussians_of(1, 8, family="ordinary", shape=SHAPE))
    truth = replace(truth, scales=np.maximum(truth.scales, 1.5))
    start = kept(replace(truth, means=truth.means + rng.normal(0, 0.5, (8, 2)), colors=truth.colors + 0.1))
    loss = Watched(squares_to(to_planes(render(truth, REGION))))
    run(start, loss, steps=100, rates=rates_of(True))
    assert min(loss.values) < 1e-2 * loss.values[0]  # measured: 1e-4


def test_the_bits_do_not_depend_on_the_number_of_threads_nor_on_the_run(gaussians_of):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core: nothing to compare")
    own = kept(gaussians_of(0, 80, shape=SHAPE))
    loss, results = squares_to(to_planes(noise(0))), []
    for count in (1, 2, 2):  # the fixture of this folder puts back what was before
        numba.set_num_threads(count)
        results.append(run(own, loss, steps=5, rates=rates_of(True, 0.1)))
    assert (results[0].to_rows() != own.to_rows()).any()
    for other in results[1:]:
        assert_same_bits(other, results[0])


# ---- how far it goes ----


def units_by_definition(rows, relative):
    """Return what a rate of 1 is, for each parameter."""
    units = np.ones_like(rows)
    units[:, :2] = rows[:, 2:4].min(axis=1, keepdims=True) if relative else np.array(SHAPE) / 2
    if relative:
        units[:, 2:4] = rows[:, 2:4]
    return units


def textbook(own, target, *, steps, relative):
    """Return each state of Kingma and Ba's algorithm, in float64 with the dense engine's gradients."""
    rates = np.array([RATES["mean"]] * 2 + [RATES["scale"]] * 2 + [RATES["rotation"]] + own.bands * [RATES["color"]])
    b1, b2 = 0.9, 0.99 if relative else 0.999
    rows = own.to_rows().astype(np.float64)
    m, v, states = np.zeros_like(rows), np.zeros_like(rows), [rows]
    for t in range(1, steps + 1):
        now = Gaussians.from_rows(rows.astype(np.float32))
        units = units_by_definition(rows, relative)
        gradient = reference.vjp(now, REGION, cotangent=reference.render(now, REGION) - target)
        gradient *= units if relative else 1  # of the parameter counted in these units
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        share = 0.5 * (1 + math.cos(math.pi * (t - 1) / steps)) if relative else 1
        rows = rows - share * rates * units * (m / (1 - b1**t)) / np.sqrt(v / (1 - b2**t) + 1e-300)
        states.append(rows)
    return states


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_states_are_those_of_the_textbook(gaussians_of, drawn, seed, relative):
    target = noise(seed)
    own = kept(gaussians_of(seed, 6, family="ordinary", shape=SHAPE))
    # None round: its rotation would have no gradient but rounding, whose sign decides the step.
    own = replace(own, means=np.clip(own.means, 8, 18), scales=np.clip(own.scales, 1.2, 6) * [1.4, 1.0])
    far = np.full((6, 2), 1e4, np.float32)
    wide = Bounds(low=-far, high=far, min_scale=0.01, max_scale=1e4)
    run(own, squares_to(to_planes(target)), steps=5, rates=rates_of(relative), bounds=wide)
    steps = units_by_definition(own.to_rows(), relative) * [0.1, 0.1, 0.05, 0.05, 0.05, 0.02, 0.02, 0.02]
    for found, expected in zip(drawn[1:], textbook(own, target, steps=5, relative=relative), strict=True):
        # Float32 gradients and parameters: a thousandth of a step of each parameter.
        assert (np.abs(found.to_rows() - expected) <= 1e-3 * steps + 1e-6).all()


@pytest.mark.parametrize("relative", [True, False])
def test_colors_pulled_evenly_move_by_the_rate_which_falls_along_a_cosine_only_if_relative(
    gaussians_of, drawn, relative
):
    own = kept(gaussians_of(3, 10, family="ordinary", shape=SHAPE))
    rates = Rates(mean=0, scale=0, rotation=0, color=0.02, relative=relative)
    run(own, lambda image: (float(image.sum()), np.ones_like(image)), steps=8, rates=rates)
    moves = -np.diff([state.colors for state in drawn[1:]], axis=0)
    steps = np.arange(8)
    expected = 0.02 * (0.5 * (1 + np.cos(np.pi * steps / 8)) if relative else np.ones(8))
    # A gradient that stays the same is divided by itself; colors near 1 round by 6e-8.
    np.testing.assert_allclose(moves, np.broadcast_to(expected[:, None, None], moves.shape), atol=1e-6)
    np.testing.assert_array_equal(drawn[-1].to_rows()[:, :5], own.to_rows()[:, :5])


def test_rates_of_zero_hold_their_parameters(gaussians_of):
    own = kept(gaussians_of(3, 10, family="ordinary", shape=SHAPE))
    columns = {"mean": slice(0, 2), "scale": slice(2, 4), "rotation": slice(4, 5), "color": slice(5, 8)}
    for name, part in columns.items():
        rates = replace(rates_of(True, 0.1), **dict.fromkeys(set(RATES) - {name}, 0.0))
        moved = run(own, squares_to(to_planes(noise(3))), steps=3, rates=rates).to_rows() != own.to_rows()
        assert moved[:, part].any()
        assert not np.delete(moved, part, axis=1).any()
