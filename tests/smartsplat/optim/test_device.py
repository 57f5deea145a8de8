"""A fit worked out on a device against the same on the host; in Triton's interpreter, or compiled (marker `gpu`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from smartsplat.config import FitConfig
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.optim import Target, device, fit_tiles, lm
from smartsplat.optim.device import DeviceMachine
from smartsplat.optim.host import HOST
from smartsplat.optim.levels import coarsen
from smartsplat.optim.lm import levenberg_marquardt
from smartsplat.optim.machine import Bounds, machine_for
from smartsplat.render import render
from smartsplat.render.device import Tuning, device_operators
from smartsplat.render.kernels import INTERPRETED
from smartsplat.schedule import FitPass

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

SHAPE = (40, 36)
REGION = Region(y0=0, y1=SHAPE[0], x0=0, x1=SHAPE[1])
MACHINES = [HOST, DeviceMachine()]


def bounds_for(count):
    high = np.tile(np.float32(SHAPE), (count, 1))
    return Bounds(low=np.zeros((count, 2), np.float32), high=high, min_scale=0.35, max_scale=20.0)


def kept(gaussians):
    last = np.nextafter(np.float32(SHAPE), np.float32(0))
    return replace(
        gaussians, means=np.clip(gaussians.means, 0, last), scales=np.clip(gaussians.scales, np.float32(0.35), 20)
    )


def noise(bands=3, seed=0):
    return np.random.default_rng(seed).random((*SHAPE, bands)).astype(np.float32)


def weight_of(kind):
    weight = np.random.default_rng(1).random(SHAPE).astype(np.float32)
    return {"none": None, "holes": np.float32(weight < 0.7), "any": weight, "no data": np.zeros_like(weight)}[kind]


def run(machine, own, pixels, *, weight=None, pairs=8, damping=0.2):
    return levenberg_marquardt(
        own,
        machine.to_planes(pixels),
        region=REGION,
        weight=None if weight is None else machine.to_planes(weight[..., None])[0],
        bounds=bounds_for(len(own)),
        pairs=pairs,
        damping=damping,
        machine=machine,
    )


def pixels_of(machine, planes):
    return machine.to_host(machine.to_pixels(planes))


# ---- piece by piece ----


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("family", ["ordinary", "needles", "tiny"])
def test_the_solvers_vectors_are_the_hosts(gaussians_of, family, bands):
    own, rng, damping = gaussians_of(1, 9, family=family, bands=bands), np.random.default_rng(0), 0.25
    own = replace(own, colors=np.where(np.arange(9)[:, None] == 0, 0, own.colors))  # one is black
    given = [rng.normal(size=(9, 5 + bands)) for _ in range(3)]
    seen = []
    for machine in MACHINES:
        held = machine.take(own)
        rest, direction, product = (machine.to_vectors(each) for each in given)
        ready, solution = machine.to_vectors(0 * given[0]), machine.to_vectors(given[0])
        norm = machine.precondition(ready, rest, held, damping)
        curvature = machine.damp(product, direction, held, damping)
        machine.advance(solution, rest, direction, product, norm, norm)
        machine.turn(direction, ready, norm, norm)
        at = machine.operators(held, REGION)
        seen.append([machine.to_host(each) for each in (ready, product, solution, rest, direction)])
        seen[-1].append(np.array(machine.numbers(at, norm, curvature)))
    for host, other in zip(*seen, strict=True):
        np.testing.assert_allclose(other, host, rtol=1e-9, atol=1e-12 * np.abs(host).max())  # float64 sums


def test_a_direction_without_curvature_is_not_gone_along(gaussians_of):
    own = gaussians_of(0, 3)
    for machine in MACHINES:
        one, zero = (
            machine.precondition(
                *[machine.to_vectors(np.full((3, 8), value)) for value in (value, value)], machine.take(own), 0.5
            )
            for value in (1.0, 0.0)
        )
        solution, rest, direction = (machine.to_vectors(np.full((3, 8), value)) for value in (1.0, 2.0, 3.0))
        machine.advance(solution, rest, direction, direction, one, zero)
        machine.turn(direction, rest, one, zero)
        for vectors, value in ((solution, 1), (rest, 2), (direction, 2)):
            assert (machine.to_host(vectors) == value).all()


@pytest.mark.parametrize("size", [0.0, 0.1, 5.0])
@pytest.mark.parametrize("family", ["ordinary", "needles", "tiny"])
def test_a_step_is_the_hosts(gaussians_of, family, size):
    own = kept(gaussians_of(2, 60, family=family, shape=SHAPE))
    step = size * np.random.default_rng(2).normal(size=(60, 8))
    moved = [
        machine.give(machine.moved(machine.take(own), machine.to_vectors(step), machine.take_bounds(bounds_for(60))))
        for machine in MACHINES
    ]
    for name in ("means", "scales", "colors"):
        # Float32; and of a needle 70 px long that is turned, its width keeps 1e-7 of the length over the width.
        np.testing.assert_allclose(getattr(moved[1], name), getattr(moved[0], name), rtol=1e-5, atol=1e-9)
    # A round Gaussian's rotation is none; at pi/2 either sign is the same.
    turned = np.abs(moved[1].rotations.astype(float) - moved[0].rotations)
    apart = np.minimum(turned, np.pi - turned) * (moved[0].scales[:, 0] / moved[0].scales[:, 1] - 1)
    assert apart.max() < 1e-4
    assert (moved[1].means < np.float32(SHAPE)).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["none", "holes", "any"])
def test_the_mixed_loss_and_its_slope_are_the_hosts(share, kind):
    weight = np.ones(SHAPE, np.float32) if kind == "none" else weight_of(kind)
    seen = []
    for machine in MACHINES:
        planes = machine.to_planes(noise(2)), machine.to_planes(weight[..., None])[0]
        value, slope = machine.mixed_loss(*planes, share)(machine.to_planes(noise(2, seed=5)))
        seen.append((value, pixels_of(machine, slope)))
    assert seen[1][0] == pytest.approx(seen[0][0], rel=1e-5)
    # Variances are differences of float32 sums: 1e-7 of a mean square, over a variance.
    np.testing.assert_allclose(seen[1][1], seen[0][1], rtol=0, atol=2e-5 * np.abs(seen[0][1]).max())


# ---- Levenberg-Marquardt ----


@pytest.mark.parametrize(("family", "kind"), [("ordinary", "none"), ("needles", "holes"), ("mixed", "any")])
def test_levenberg_marquardt_goes_the_hosts_way(gaussians_of, monkeypatch, family, kind):
    # Narrowed footprints end at their share of the radius here, and at the next strip on the host.
    monkeypatch.setattr(lm, "_RADIUS_SHARE", 1.0)
    own = kept(gaussians_of(4, 8, family=family, shape=SHAPE))
    host, other = (run(machine, own, noise(), weight=weight_of(kind)) for machine in MACHINES)
    assert (np.diff(other.losses) < 0).all()
    assert len(host.losses) == len(other.losses) > 2
    # Rounding moves steps by little, but a pixel at the edge of a footprint, 1/255 of a color, falls to either side.
    np.testing.assert_allclose(other.losses, host.losses, rtol=2e-3)
    machine, weight = MACHINES[1], weight_of(kind)
    known = np.float32(1) if weight is None else weight[..., None]
    image = render(other.gaussians, REGION, engine="cuda")
    np.testing.assert_allclose(pixels_of(machine, other.residual), known * (image - noise()), atol=1e-5)
    assert other.gaussians.is_finite()


def test_a_run_has_the_same_bits_every_time(gaussians_of):
    own = kept(gaussians_of(5, 6, shape=SHAPE))
    one, other = (run(DeviceMachine(), own, noise(), pairs=5) for _ in range(2))
    assert one.losses == other.losses
    np.testing.assert_array_equal(one.gaussians.to_rows(), other.gaussians.to_rows())


def test_steps_for_which_there_was_no_room_are_tried_again(gaussians_of, monkeypatch):
    own = kept(gaussians_of(0, 4, family="tiny", shape=SHAPE))  # they grow: into more and more bins
    own = replace(own, scales=3 * own.scales, colors=np.full_like(own.colors, 0.5))
    monkeypatch.setattr(device, "_SPARE", 1.0)
    small = Tuning(bin_rows=16, bin_columns=16, owners_a_sum=16, parts_a_sum=4)
    rooms = []

    def in_small_bins(*args, room, **how):
        rooms.append(room)
        return replace(device_operators(*args, room=room, **how), tuning=small)

    monkeypatch.setattr(device, "device_operators", in_small_bins)
    fitted = run(DeviceMachine(), own, np.full_like(noise(), 0.5))
    assert (np.diff(fitted.losses) < 0).all()
    assert fitted.losses[-1] < 0.9 * fitted.losses[0]
    assert rooms[0] is None
    assert rooms[1] < rooms[-1]  # so there was a step for which it was too little


@pytest.mark.parametrize(("picture", "color"), [(0.0, 0.0), (1e6, 0.0), (0.0, 1e5), (np.nan, 0.5)])
def test_nothing_does_harm(gaussians_of, picture, color):
    own = kept(gaussians_of(3, 4, shape=SHAPE))
    own = replace(own, colors=np.full_like(own.colors, color))
    fitted = run(DeviceMachine(), own, np.full((*SHAPE, 3), picture, np.float32), pairs=6)
    assert fitted.gaussians.is_finite()
    assert (np.diff(fitted.losses) < 0).all()
    if np.isnan(picture) or picture == color:
        np.testing.assert_array_equal(fitted.gaussians.to_rows(), own.to_rows())


# ---- whole visits ----

CORE = Region(y0=8, y1=32, x0=4, x1=32)


def visit(engine, gaussians_of, work, *, kind="none", count=5, pixels=None, factor=1):
    values, weight = noise() if pixels is None else pixels, weight_of(kind)
    region, core = REGION, CORE
    if factor > 1:
        values, weight = coarsen(values, weight, factor=factor)
        region, core = (
            Region(y0=each.y0 // factor, y1=each.y1 // factor, x0=each.x0 // factor, x1=each.x1 // factor)
            for each in (region, core)
        )
    made = gaussians_of(6, count, shape=CORE.shape, origin=CORE.origin)
    last = np.nextafter(np.float32(CORE.shape), np.float32(0))
    own = replace(made, means=np.clip(made.means, 0, last), scales=np.clip(made.scales, np.float32(0.35), 20))
    return fit_tiles(
        Target(pixels=values, weight=weight, core=core, padded=region, factor=factor),
        [own],
        cores=[CORE],
        frozen=[gaussians_of(7, 4, shape=(8, 36))],
        work=work,
        config=FitConfig(),
        max_scale=20.0,
        engine=engine,
    )


ALL = FitPass(color_iterations=2, pairs=3, ssim_pairs=2, ssim_gain=2.0)


@pytest.mark.parametrize(
    ("work", "how"),
    [
        (ALL, {}),
        (ALL, {"kind": "holes"}),
        (FitPass(color_iterations=2, pairs=3), {"factor": 2, "kind": "any"}),
        (FitPass(adam_steps=2), {}),
        (FitPass(pairs=3), {"count": 1}),
    ],
)
def test_a_visit_is_the_hosts(gaussians_of, work, how):
    host, other = (visit(engine, gaussians_of, work, **how) for engine in ("cpu", "cuda"))
    assert isinstance(other.machine, DeviceMachine)
    assert other.report.loss_after <= other.report.loss_before
    for name in ("loss_before", "weight", "count"):
        assert getattr(other.report, name) == pytest.approx(getattr(host.report, name), rel=1e-4)
    for name in ("loss_after", "squared_error"):
        assert getattr(other.report, name) == pytest.approx(getattr(host.report, name), rel=3e-2)
    assert other.left_over().shape == host.left_over().shape
    assert np.abs(other.left_over() - host.left_over()).mean() < 0.01
    assert other.gaussians[0].is_finite()


@pytest.mark.parametrize("kind", ["none", "no data"])
@pytest.mark.parametrize("count", [0, 1])
def test_a_visit_to_next_to_nothing_does_no_harm(gaussians_of, count, kind):
    done = visit("cuda", gaussians_of, ALL, kind=kind, count=count, pixels=np.full((*SHAPE, 3), 0.5, np.float32))
    assert done.report.loss_after <= done.report.loss_before
    assert np.isfinite(done.left_over()).all()
    assert done.gaussians[0].is_finite()
    if kind == "no data":
        assert not done.left_over().any()


def test_the_machine_is_the_engines():
    assert machine_for("cpu") is HOST
    assert isinstance(machine_for("cuda"), DeviceMachine)
    assert isinstance(MACHINES[1].give(MACHINES[1].take(Gaussians.empty(bands=2))), Gaussians)
