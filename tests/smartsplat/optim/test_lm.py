"""Levenberg-Marquardt against dense linear algebra: its solver, its preconditioner, its step, and what it promises."""

from __future__ import annotations

import math
from dataclasses import replace

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.optim import host, lm
from smartsplat.optim.lm import inner_iterations, levenberg_marquardt
from smartsplat.optim.machine import Bounds
from smartsplat.render import operators, render
from smartsplat.render.cpu import Operators, to_planes

few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)
MIN_SCALE, MAX_SCALE = 0.35, 20.0


def at_origin(height, width):
    return Region(y0=0, y1=height, x0=0, x1=width)


def bounds_for(gaussians, shape):
    count = len(gaussians)
    return Bounds(
        low=np.zeros((count, 2), np.float32),
        high=np.tile(np.array(shape, np.float32), (count, 1)),
        min_scale=MIN_SCALE,
        max_scale=MAX_SCALE,
    )


def kept(gaussians, shape):
    """Return the Gaussians with means within ``shape`` and scales in range."""
    last = np.nextafter(np.array(shape, np.float32), np.float32(0))
    return replace(
        gaussians,
        means=np.clip(gaussians.means, 0, last),
        scales=np.clip(gaussians.scales, np.float32(MIN_SCALE), MAX_SCALE),
    )


def weight_of(kind, shape, rng):
    """Return one plane of weights: none, ones with holes, or any."""
    if kind == "none":
        return None
    weight = rng.random(shape)
    return to_planes(np.float32(weight < 0.7 if kind == "holes" else weight)[..., None])[0]


def run(own, target, *, shape, weight=None, pairs=25, damping=0.1, fixed=0):
    return levenberg_marquardt(
        own,
        target,
        region=at_origin(*shape),
        weight=weight,
        bounds=bounds_for(own, shape),
        pairs=pairs,
        damping=damping,
        fixed=fixed,
    )


def noise(shape, bands, rng):
    return to_planes(rng.random((*shape, bands)).astype(np.float32))


def assert_same_bits(a, b):
    np.testing.assert_array_equal(a.to_rows(), b.to_rows())


# ---- what it promises ----


@given(
    seeds,
    st.sampled_from(["ordinary", "tiny", "huge", "needles", "mixed"]),
    st.sampled_from([1, 3]),
    st.sampled_from(["none", "holes", "any"]),
    st.integers(1, 40),
    st.integers(0, 40),
    st.sampled_from([0.1, 1.0, 1e4]),
)
@settings(deadline=None, max_examples=60)
def test_losses_never_rise_and_end_with_the_state_that_is_returned(
    gaussians_of, seed, family, bands, kind, count, pairs, damping
):
    shape, rng = (30, 37), np.random.default_rng(seed)
    own = kept(gaussians_of(seed, count, family=family, bands=bands, shape=shape), shape)
    target, weight = noise(shape, bands, rng), weight_of(kind, shape, rng)
    fitted = run(own, target, shape=shape, weight=weight, pairs=pairs, damping=damping)
    assert (np.diff(fitted.losses) < 0).all()
    assert np.isfinite(fitted.losses).all()
    # The first and the last are those of the two states, and so is the residual, bit for bit.
    residual = np.empty_like(target)
    for one, loss in ((own, fitted.losses[0]), (fitted.gaussians, fitted.losses[-1])):
        assert operators(one, at_origin(*shape)).draw(residual, target=target, weight=weight) == loss
    np.testing.assert_array_equal(fitted.residual, residual)
    assert fitted.gaussians.is_finite()
    assert (fitted.gaussians.means >= 0).all()
    assert (fitted.gaussians.means < np.float32(shape)).all()
    assert (fitted.gaussians.scales >= np.float32(MIN_SCALE)).all()
    assert (fitted.gaussians.scales <= np.float32(MAX_SCALE)).all()


@given(seeds, st.sampled_from(["ordinary", "needles", "mixed"]), st.integers(1, 40))
@few
def test_fixed_means_stay_to_the_bit_while_all_else_is_fitted(gaussians_of, seed, family, count):
    shape, rng = (30, 37), np.random.default_rng(seed)
    own = kept(gaussians_of(seed, count, family=family, shape=shape), shape)
    target = noise(shape, 3, rng)
    fitted = run(own, target, shape=shape, fixed=lm.MEAN_COORDINATES)
    np.testing.assert_array_equal(fitted.gaussians.means, own.means)
    assert (np.diff(fitted.losses) < 0).all()
    if len(fitted.losses) > 1:
        # One at the largest scale may keep it.
        names = ("scales", "rotations", "colors")
        assert any((getattr(fitted.gaussians, name) != getattr(own, name)).any() for name in names)


@pytest.mark.parametrize("picture", [0.0, 1.0, 1e6, -1e6])
@pytest.mark.parametrize("color", [0.0, 1e-20, 1e5])
def test_black_and_glaring_gaussians_do_no_harm(gaussians_of, picture, color):
    shape = (25, 31)
    own = kept(gaussians_of(3, 12, shape=shape), shape)
    own = replace(own, colors=np.full_like(own.colors, color))
    fitted = run(own, to_planes(np.full((*shape, 3), picture, np.float32)), shape=shape)
    assert fitted.gaussians.is_finite()
    assert fitted.losses[-1] <= fitted.losses[0]
    if picture != color:
        assert fitted.losses[-1] < fitted.losses[0]


def test_black_gaussians_gain_color(gaussians_of):
    # Their shapes have no derivative; the damping must not be zero there.
    shape = (30, 30)
    own = kept(gaussians_of(0, 15, family="ordinary", shape=shape), shape)
    target = to_planes(render(own, at_origin(*shape)))
    fitted = run(replace(own, colors=np.zeros_like(own.colors)), target, shape=shape, pairs=60)
    assert fitted.losses[-1] < 1e-2 * fitted.losses[0]  # of the truth's own shapes only the colors are missing


def test_a_perfect_start_is_returned_at_once(gaussians_of, monkeypatch):
    shape = (40, 33)
    own = kept(gaussians_of(1, 20, shape=shape), shape)
    target = to_planes(render(own, at_origin(*shape)))
    monkeypatch.setattr(lm, "_solve", lambda *_: pytest.fail("there is nothing to solve"))
    fitted = run(own, target, shape=shape, pairs=50)
    assert_same_bits(fitted.gaussians, own)
    assert fitted.losses == (0.0,)
    assert not fitted.residual.any()


def test_gaussians_that_see_no_data_stay(gaussians_of, monkeypatch):
    shape = (40, 33)
    own = kept(gaussians_of(1, 20, shape=shape), shape)
    monkeypatch.setattr(lm, "_solve", lambda *_: pytest.fail("there is nothing to solve"))
    nothing = to_planes(np.zeros((*shape, 1), np.float32))[0]
    fitted = run(own, noise(shape, 3, np.random.default_rng(0)), shape=shape, weight=nothing)
    assert_same_bits(fitted.gaussians, own)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_target_that_is_no_number_leaves_the_start(gaussians_of, bad):
    shape = (20, 20)
    own = kept(gaussians_of(1, 5, family="ordinary", shape=shape), shape)
    target = noise(shape, 3, np.random.default_rng(0))
    target[0, 10, 30] = bad
    with np.errstate(all="ignore"):
        fitted = run(own, target, shape=shape)
    assert_same_bits(fitted.gaussians, own)


@pytest.mark.parametrize("pairs", [0, 1, 2, 3, 7, 20, 61])
def test_the_work_is_what_was_asked_for(gaussians_of, monkeypatch, pairs):
    calls = {"draw": 0, "draw_change": 0}

    def counted(name):
        method = getattr(Operators, name)

        def count(*args, **kwargs):
            calls[name] += 1
            return method(*args, **kwargs)

        return count

    for name in calls:
        monkeypatch.setattr(Operators, name, counted(name))
    shape = (30, 30)
    own = kept(gaussians_of(0, 15, family="ordinary", shape=shape), shape)
    run(own, noise(shape, 3, np.random.default_rng(0)), shape=shape, pairs=pairs)
    # The first draw is of the start. The least step is one product and its trial, and so may end one pair later.
    assert pairs <= calls["draw_change"] + calls["draw"] - 1 <= (pairs + 1 if pairs else 0)


def test_it_stops_where_no_step_helps_any_more(gaussians_of, monkeypatch):
    calls = []
    solve = lm._solve
    monkeypatch.setattr(lm, "_solve", lambda *args: calls.append(args) or solve(*args))
    shape = (20, 20)
    own = kept(gaussians_of(0, 1, family="ordinary", shape=shape), shape)
    fitted = run(own, noise(shape, 1 + 2, np.random.default_rng(0)), shape=shape, pairs=100_000)
    assert fitted.losses[-1] < fitted.losses[0]
    assert len(calls) < 1000  # the damping grows from failure to failure until it is over; measured: tens of steps


def test_solves_get_longer_as_the_model_gets_better():
    lengths = [inner_iterations(step) for step in range(50)]
    assert lengths == sorted(lengths)
    assert lengths[0] >= 1


def test_the_bits_do_not_depend_on_the_number_of_threads_nor_on_the_run(gaussians_of):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core: nothing to compare")
    shape = (150, 90)
    own = kept(gaussians_of(0, 120, shape=shape), shape)
    target = noise(shape, 3, np.random.default_rng(0))
    results = []
    for count in (1, 2, 2):  # the fixture of this folder puts back what was before
        numba.set_num_threads(count)
        results.append(run(own, target, shape=shape))
    assert len(results[0].losses) > 3
    for other in results[1:]:
        assert_same_bits(other.gaussians, results[0].gaussians)
        assert other.losses == results[0].losses
        np.testing.assert_array_equal(other.residual, results[0].residual)


@pytest.mark.parametrize("kind", ["none", "holes"])
@pytest.mark.parametrize("seed", range(3))
def test_perturbed_gaussians_of_a_known_image_come_back(gaussians_of, seed, kind):
    shape, rng = (48, 44), np.random.default_rng(seed)
    truth = kept(gaussians_of(seed, 12, family="ordinary", shape=shape), shape)
    truth = replace(truth, scales=np.clip(truth.scales, 1.5, MAX_SCALE))
    start = replace(
        truth,
        means=truth.means + rng.normal(0, 0.5, (12, 2)),
        scales=truth.scales * np.exp(rng.uniform(-0.2, 0.2, (12, 2))),
        rotations=truth.rotations + rng.uniform(-0.2, 0.2, 12),
        colors=truth.colors + rng.normal(0, 0.1, (12, 3)),
    )
    target, weight = to_planes(render(truth, at_origin(*shape))), weight_of(kind, shape, rng)
    fitted = run(kept(start, shape), target, shape=shape, weight=weight, pairs=200)
    # Near the solution it converges fast, until pixels at the edge of a footprint, 1/255 of a color each, come in or
    # out of it: measured, 1e-5 is left.
    assert fitted.losses[-1] < 1e-4 * fitted.losses[0]


# ---- the linear system ----


def dense_system(own, region, weight, damping):
    """Return ``J^T W J + damping D``, column by column through the engine's maps, and ``J^T W J`` alone."""
    at = operators(own, region)
    size = own.to_rows().size
    columns, change = [], at.new_planes(own.bands)
    for k in range(size):
        at.draw_change(change, np.eye(size)[k].reshape(len(own), -1), weight=weight)
        columns.append(at.gather(change).ravel())
    matrix = np.stack(columns, axis=1)
    return matrix + damping * np.diag(diagonal_of(own).ravel()), matrix


def diagonal_of(own):
    """Return what the module documents as the diagonal of one Gaussian's ``J^T J``."""
    area, energy = areas_and_energies(own)
    one = np.ones_like(energy)
    shares = [0.5 * energy, 0.5 * energy, 0.75 * energy, 0.75 * energy, 0.25 * energy] + own.bands * [one]
    return area[:, None] * np.stack(shares, axis=1)


def areas_and_energies(own):
    area = math.pi * own.scales.astype(np.float64).prod(axis=1)
    return area, (own.colors.astype(np.float64) ** 2).sum(axis=1) + 0.02**2  # as black ones count


def documented_block(area, color, damping):
    """Return the documented ``J^T J`` of one Gaussian with its diagonal damped."""
    bands, energy = len(color), float(color @ color)
    block = np.zeros((5 + bands, 5 + bands))
    block[[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]] = area * energy * np.array([0.5, 0.5, 0.75, 0.75, 0.25])
    block[2, 3] = block[3, 2] = area * energy / 4
    block[2:4, 5:] = area * color / 2
    block[5:, 2:4] = block[2:4, 5:].T
    block[range(5, 5 + bands), range(5, 5 + bands)] = area
    return block + damping * np.diag(np.diag(block))


def system_of(own, region, weight, damping):
    at = operators(own, region)
    return lm._System(
        machine=host.HOST, at=at, own=own, damping=damping, weight=weight, change=at.new_planes(own.bands)
    )


@pytest.mark.parametrize("kind", ["none", "any"])
@pytest.mark.parametrize("damping", [0.1, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_many_iterations_solve_the_damped_normal_equations(gaussians_of, seed, damping, kind):
    shape, rng = (21, 24), np.random.default_rng(seed)
    own = kept(gaussians_of(seed, 5, family="ordinary", shape=shape), shape)
    region, weight = at_origin(*shape), weight_of(kind, shape, rng)
    matrix, _ = dense_system(own, region, weight, damping)
    gradient = rng.normal(size=(5, 8)) * np.sqrt(diagonal_of(own))
    found, _ = lm._solve(system_of(own, region, weight, damping), gradient, 200)
    expected = np.linalg.solve(matrix, -gradient.ravel()).reshape(5, 8)
    # In the norm of the system, as conjugate gradients converge in it. Products round by 1e-7 of their size in float32,
    # and the system's condition, with its diagonal damped by 0.1 and scaled, is below 1e2: (1e-7)^2 1e2, and room.
    gap = (found - expected).ravel()
    assert gap @ matrix @ gap < 1e-11 * (expected.ravel() @ matrix @ expected.ravel())


@given(seeds, st.sampled_from(["ordinary", "needles", "mixed"]), st.integers(1, 12))
@few
def test_each_iteration_lowers_the_model_of_the_loss(gaussians_of, seed, family, count):
    shape, rng = (25, 25), np.random.default_rng(seed)
    own = kept(gaussians_of(seed, count, family=family, shape=shape), shape)
    system = system_of(own, at_origin(*shape), None, 0.1)
    gradient = rng.normal(size=(count, 8)) * np.sqrt(diagonal_of(own))
    values = [0.0]
    for iterations in (1, 2, 3, 6):
        step, _ = lm._solve(system, gradient, iterations)
        curved = system.product(step) + 0.1 * diagonal_of(own) * step
        values.append((gradient * step).sum() + 0.5 * (step * curved).sum())
    # In exact arithmetic each is lower than the one before. Float32 products may undo 1e-4 of what is reached.
    assert values[1] < 0
    assert (np.diff(values) <= 1e-4 * abs(values[-1])).all()


def preconditioner_of(own, damping):
    """Return the preconditioner as one dense matrix a Gaussian, and check what it returns of its products."""
    size = 5 + own.bands
    matrices = np.empty((len(own), size, size))
    for k in range(size):
        rest, out = np.zeros((len(own), size)), np.full((len(own), size), np.nan)
        rest[:, k] = 1
        product = host._precondition(out, rest, own.scales, own.colors, damping)
        assert product == pytest.approx((out * rest).sum(), rel=1e-9)  # float64 sums
        matrices[:, :, k] = out
    return matrices


@given(seeds, st.sampled_from(["ordinary", "tiny", "huge", "needles"]), st.sampled_from([1, 3]), st.floats(0.1, 1e4))
@few
def test_the_preconditioner_is_the_inverse_of_the_documented_damped_block(gaussians_of, seed, family, bands, damping):
    own = gaussians_of(seed, 6, family=family, bands=bands)
    own = replace(own, colors=np.where(own.colors < 0, -1, 1) * (5 + own.colors))
    areas, _ = areas_and_energies(own)
    for matrix, area, color in zip(preconditioner_of(own, damping), areas, own.colors.astype(float), strict=True):
        block = documented_block(area, color, damping)
        units = np.sqrt(np.outer(np.diag(block), np.diag(block)))
        inverse = np.linalg.inv(block / units)
        # Colors of norm 4.5 and more: the 0.02 that a black one counts for is up to 2e-5 of their energy.
        np.testing.assert_allclose(matrix * units, inverse, atol=1e-4 * np.abs(inverse).max())


@given(seeds, st.sampled_from([0.0, 1e-6, 0.02, 0.3, 3.0]), st.floats(0.1, 1e4))
@example(0, 0.0, 0.1)
@few
def test_the_preconditioner_is_symmetric_and_positive_even_for_black_gaussians(gaussians_of, seed, brightness, damping):
    own = gaussians_of(seed, 6)
    own = replace(own, colors=brightness * own.colors)
    root = np.sqrt((1 + damping) * diagonal_of(own))
    for matrix, units in zip(preconditioner_of(own, damping), root, strict=True):
        scaled = matrix * np.outer(units, units)
        np.testing.assert_allclose(scaled, scaled.T, atol=1e-9 * np.abs(scaled).max())  # float64
        eigenvalues = np.linalg.eigvalsh(scaled)
        # Those of its inverse add up to 8, about, as its diagonal is 1; the least damping keeps them well from 0.
        assert eigenvalues[0] > 1 / 8.1
        assert eigenvalues[-1] < 10


@pytest.mark.parametrize("rotation", [0.0, 0.7, -2.0])
@pytest.mark.parametrize("scales", [(4.0, 4.0), (6.0, 3.0), (3.0, 9.0)])
def test_the_documented_block_is_that_of_one_gaussian_alone(scales, rotation):
    color = np.array([0.8, -0.3, 0.5])
    alone = Gaussians(means=[[40.3, 39.6]], scales=[scales], rotations=[rotation], colors=[color])
    _, found = dense_system(alone, at_origin(80, 80), None, 0.0)
    expected = documented_block(math.pi * scales[0] * scales[1], color, 0.0)
    units = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    # The footprint ends at 3.3 standard deviations: beyond, 1e-3 of the fourth moments of g^2.
    np.testing.assert_allclose(found / units, expected / units, atol=3e-3)


# ---- the step ----

loose = Bounds(
    low=np.full((1, 2), -1e6, np.float32), high=np.full((1, 2), 1e6, np.float32), min_scale=1e-6, max_scale=1e6
)


def retracted(row, step, bounds=loose):
    rows = np.array([row], np.float32)
    host._retract(rows, np.array([step], np.float64), bounds.low, bounds.last, bounds.min_scale, bounds.max_scale)
    return rows[0]


def factor_of(row):
    """Return the axes times the scales, 2 x 2."""
    first, second, angle = np.array(row[2:5], np.float32).astype(np.float64)
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return axes @ np.diag([first, second])


def exponential(step):
    """Return ``exp(d)``."""
    return expm(np.array([[step[2], step[4] / 2], [step[4] / 2, step[3]]]))


angles = st.floats(-4, 4)
small_steps = st.tuples(*[st.floats(-1, 1)] * 2, *[st.floats(-0.5, 0.5)] * 3)
shapes = st.tuples(st.floats(0.35, 70), st.floats(0.35, 70))


@given(shapes, angles, small_steps)
@example((70.0, 0.35), 0.3, (0, 0, 0.5, -0.5, 0.5))
@example((0.35, 70.0), -1.1, (0, 0, 0.2, 0.5, -0.5))
@example((2.0, 2.0), 0.9, (0, 0, 0, 0, 0.5))
@example((2.0, 2.0), 0.9, (0, 0, 0.3, 0.3, 0))
@example((3.0, 5.0), 0.9, (0, 0, 0, 0, 0))
@example((3.0, 5.0), 0.9, (0, 0, 1e-13, -1e-13, 1e-13))
@settings(deadline=None, max_examples=150)
def test_a_step_makes_the_covariance_that_of_the_matrix_exponential(scales, angle, step):
    row = (10.0, 20.0, *scales, angle, 1.0)
    moved, before = retracted(row, step), factor_of(row)
    wanted = before @ exponential(step)
    singular = np.linalg.svd(wanted, compute_uv=False)
    # Float32 angles and scales: 1e-7 of each scale.
    np.testing.assert_allclose(moved[2:4], singular, rtol=1e-6)
    # Seen in the coordinates in which the wanted one is round: the angle's 2e-7 (twice, and up to pi/2) times the
    # aspect, 200 and e at the most.
    seen = np.linalg.solve(wanted, factor_of(moved))
    np.testing.assert_allclose(seen @ seen.T, np.eye(2), atol=5e-7 * (1 + singular[0] / singular[1]))


@pytest.mark.parametrize("step", [(0, 0, 0.1, 0.2, 0.0), (0, 0, 0.3, -0.3, 0.4), (0, 0, 0, 0, -0.5)])
def test_the_width_of_an_extreme_needle_is_exact(step):
    # 5 million to one: the variances differ by 2.5e13, so a difference of them would have no digits left.
    row = (10.0, 20.0, 5000.0, 0.001, 0.6, 1.0)
    singular = np.linalg.svd(np.diag([5000, np.float32(0.001)]) @ exponential(step), compute_uv=False)
    np.testing.assert_allclose(retracted(row, step)[2:4], singular, rtol=1e-6)  # float32


@given(shapes, angles, small_steps)
@few
def test_a_step_moves_the_mean_along_the_gaussians_own_axes_and_leaves_the_colors(scales, angle, step):
    row = np.array((10.0, 20.0, *scales, angle, 0.25), np.float32)
    moved = retracted(row, step)
    expected = row[:2] + factor_of(row) @ step[:2]
    # Float32: means up to 120 px round by 4e-6 px, the angle's sine by 6e-8 of 70 px.
    np.testing.assert_allclose(moved[:2], expected, atol=2e-5)
    assert moved[5] == row[5]


@given(shapes, angles, st.tuples(*[st.floats(-9, 9)] * 5))
@few
def test_a_step_goes_no_further_than_the_longest(scales, angle, step):
    row = (10.0, 20.0, *scales, angle, 1.0)
    limit = np.array([1, 1, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(retracted(row, step), retracted(row, np.clip(step, -limit, limit)))


@given(shapes, angles, st.tuples(*[st.floats(-9, 9)] * 5), st.floats(0.35, 2), st.floats(5, 60))
@few
def test_a_step_ends_within_bounds_and_at_them_if_it_wants_beyond(scales, angle, step, least, most):
    row = (4.9, 0.1, *scales, angle, 1.0)
    low, high = np.array([[1, 0]], np.float32), np.array([[5, 0.5]], np.float32)
    tight = Bounds(low=low, high=high, min_scale=least, max_scale=most)
    free, moved = retracted(row, step), retracted(row, step, tight)
    np.testing.assert_array_equal(moved[2:4], np.clip(free[2:4], np.float32(least), np.float32(most)))
    np.testing.assert_array_equal(moved[:2], np.clip(free[:2], low[0], np.nextafter(high[0], np.float32(0))))
    assert moved[4] == free[4]
