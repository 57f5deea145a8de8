"""The CUDA engine against the dense float64 one: interpreted on the CPU, or compiled (marker `gpu`).

Compiled: ``TRITON_INTERPRET=0 python -m pytest -m gpu``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from smartsplat.errors import ConfigError
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.render import _what_cuda_lacks, cpu, cuda, operators, reference, render, resolve_engine
from smartsplat.render.cpu import to_image, to_planes
from smartsplat.render.device import Tuning, device_operators, engine_device
from smartsplat.render.footprint import CUTOFF
from smartsplat.render.kernels import INTERPRETED, MOST_BANDS
from tests.smartsplat.render.comparing import assert_close, at_origin, cotangent_on, decided, squared_distances

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

FAMILIES = ["tiny", "ordinary", "huge", "needles", "outside", "mixed"]
SHAPES = [(1, 1), (16, 17), (37, 33)]
COUNT = 8
# As compiled, except for how much is added up at once: the interpreter takes long for each step.
COMPILED = Tuning(owners_a_sum=16, parts_a_sum=4) if INTERPRETED else Tuning()


def compiled(engine):
    """Return the engine with work cut up as on a device."""
    return replace(engine, device=replace(engine.device, tuning=COMPILED))


# ---- against the oracle ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_render_jvp_and_vjp_are_the_dense_engines(gaussians_of, family, shape):
    seed = len(FAMILIES) * SHAPES.index(shape) + FAMILIES.index(family)
    bands = (1, 3, 4, 8)[seed % 4]
    gaussians = gaussians_of(seed, COUNT, family=family, bands=bands, shape=shape)
    region = at_origin(*shape)
    clear, engine = decided(gaussians, region), compiled(cuda.operators(gaussians, region))
    assert_close(engine.render()[clear], reference.render(gaussians, region)[clear])
    tangent = np.random.default_rng(seed).normal(size=(COUNT, 5 + bands)).astype(np.float32)
    assert_close(engine.jvp(tangent)[clear], reference.jvp(gaussians, region, tangent=tangent)[clear])
    cotangent = cotangent_on(clear, bands, seed)
    expected = reference.vjp(gaussians, region, cotangent=cotangent)
    found = engine.vjp(cotangent)
    for column in range(5 + bands):
        assert_close(found[:, column], expected[:, column])


@pytest.mark.parametrize("seed", range(6))
def test_the_footprint_is_the_one_definition(gaussians_of, seed):
    base = gaussians_of(seed, 1, family=FAMILIES[seed], bands=1, shape=(40, 45))
    one, region = replace(base, colors=np.ones((1, 1))), at_origin(40, 45)
    touched = squared_distances(one, region)[0] <= CUTOFF**2
    clear = decided(one, region)
    np.testing.assert_array_equal((render(one, region, engine="cuda")[..., 0] > 0)[clear], touched[clear])


@pytest.mark.parametrize("scale", [0.25, 1.5])
def test_sets_with_their_own_origins_add_up_far_out_and_zoomed(gaussians_of, scale):
    far = 10**6
    sets = [gaussians_of(i, 6, shape=(30, 30), origin=(far + 20 * i, far - 13 * i)) for i in range(2)]
    y0, y1, x0, x1 = (round((far + edge) * scale) for edge in (-5, 50, -9, 40))
    region = Region(y0=y0, y1=y1, x0=x0, x1=x1)
    found, expected = render(sets, region, scale=scale, engine="cuda"), reference.render(sets, region, scale=scale)
    # Some pixels lie on a footprint's very edge, where weights are 1/255.
    assert (np.abs(found - expected) > 1e-4 * np.abs(expected).max()).any(axis=2).mean() < 0.01
    assert np.abs(found - expected).max() < 0.02


# ---- cases that strain the lists ----


def test_bins_that_nothing_meets_stay_black_and_give_nothing(gaussians_of):
    gaussians, region = gaussians_of(0, 5, family="tiny", shape=(6, 6)), at_origin(50, 70)
    engine = compiled(cuda.operators(gaussians, region))
    assert not engine.render()[16:].any()
    assert not engine.render()[:, 16:].any()
    cotangent = np.ones((50, 70, 3), np.float32)
    cotangent[:16, :16] = 0
    assert not engine.vjp(cotangent).any()


def test_one_gaussian_may_meet_every_bin():
    one = Gaussians(
        means=np.array([[40.3, 35.1]]), scales=np.array([[60.0, 40.0]]), rotations=np.ones(1), colors=np.ones((1, 3))
    )
    region = at_origin(70, 75)
    engine = compiled(cuda.operators(one, region))
    assert (engine.device.bins.starts.diff() == 1).all()
    assert_close(engine.render(), reference.render(one, region))
    cotangent = np.random.default_rng(0).normal(size=(70, 75, 3)).astype(np.float32)
    assert_close(engine.vjp(cotangent), reference.vjp(one, region, cotangent=cotangent))


def test_ten_thousand_gaussians_may_meet_one_bin(gaussians_of):
    count, region = 10_000, at_origin(9, 7)
    gaussians = gaussians_of(3, count, family="ordinary", bands=1, shape=(9, 7))
    lists = compiled(cuda.operators(gaussians, region)).device.bins
    assert len(lists.items) >= 0.99 * count
    assert (lists.items.diff() > 0).all()  # in the order of drawing
    # The interpreter takes milliseconds for each Gaussian.
    some = gaussians.select(slice(300 if INTERPRETED else count))
    engine, expected = compiled(cuda.operators(some, region)), cpu.operators(some, region)
    # The CPU engine, itself compared with the oracle, orders its sums otherwise.
    assert_close(engine.render(), expected.render().astype(np.float64))
    cotangent = np.random.default_rng(0).normal(size=(9, 7, 1)).astype(np.float32)
    assert_close(engine.vjp(cotangent), expected.vjp(cotangent).astype(np.float64))


def test_where_entries_are_more_than_there_is_room_for_losses_are_infinite(gaussians_of):
    gaussians, region = gaussians_of(0, 12, family="ordinary", shape=(40, 40)), at_origin(40, 40)
    exact = compiled(cuda.operators(gaussians, region)).device
    target = exact.new_planes(3).zero_()
    entries, image = int(exact.bins.entries), exact.new_planes(3)
    loss = exact.draw(image, target=target)
    for room in (entries, 2 * entries):
        at, planes = replace(exact, room=room), exact.new_planes(3)
        assert at.draw(planes, target=target) == loss
        assert torch.equal(planes, image)
        assert torch.equal(at.gather(target + 1), exact.gather(target + 1))
    short = replace(exact, room=entries - 1)
    assert torch.isinf(short.draw(exact.new_planes(3), target=target))
    assert int(short.bins.entries) == entries
    assert torch.isfinite(short.gather(target + 1)).all()


def test_needles_give_finite_gradients_and_images(gaussians_of):
    gaussians, region = gaussians_of(4, 12, family="needles", shape=(40, 40)), at_origin(40, 40)
    scales = gaussians.scales.copy()
    scales[:4] = [[1e4, 0.35], [0.35, 1e4], [200, 1e-3], [1e-4, 1e-4]]
    engine = cuda.operators(replace(gaussians, scales=scales), region)
    ones = np.ones((40, 40, 3), np.float32)
    assert np.isfinite(engine.render()).all()
    assert np.isfinite(engine.gather(to_planes(ones))).all()
    assert np.isfinite(engine.vjp(ones)).all()
    assert np.isfinite(engine.jvp(np.ones((12, 8), np.float32))).all()


@pytest.mark.parametrize(("height", "width"), [(0, 0), (0, 5), (7, 20)])
def test_no_gaussians_make_a_black_image_without_gradients(gaussians_of, height, width):
    region, far = at_origin(height, width), gaussians_of(0, 4, family="tiny", origin=(5000, 0))
    for gaussians in (Gaussians.empty(bands=3), far):
        engine, n = cuda.operators(gaussians, region), len(gaussians)
        assert engine.render().shape == (height, width, 3)
        assert not engine.render().any()
        assert not engine.jvp(np.ones((n, 8), np.float32)).any()
        gradient = engine.vjp(np.ones((height, width, 3), np.float32))
        assert gradient.shape == (n, 8)
        assert not gradient.any()


# ---- planes ----


@pytest.mark.parametrize("kind", ["none", "holes", "any"])
def test_drawing_with_target_and_weight_is_the_plain_formula(gaussians_of, kind):
    gaussians, rng = gaussians_of(1, 10, shape=(35, 21)), np.random.default_rng(1)
    engine, target = compiled(cuda.operators(gaussians, at_origin(35, 21))), rng.random((35, 21, 3), np.float32)
    weight = {"holes": rng.random((35, 21)) < 0.7, "any": rng.random((35, 21))}.get(kind)
    known = np.float32(1) if weight is None else weight[..., None].astype(np.float32)
    plane = None if weight is None else to_planes(known)[0]
    planes, image = np.full_like(engine.new_planes(3), np.nan), engine.render()
    loss = engine.draw(planes, target=to_planes(target), weight=plane)
    np.testing.assert_allclose(to_image(planes), known * (image - target), atol=1e-6)  # contracted or not
    assert loss == pytest.approx((known * (image.astype(np.float64) - target) ** 2).sum(), rel=1e-5)
    assert not planes[:, :, :16].any()
    assert not planes[:, :, -16:].any()
    step = rng.normal(size=(10, 8))
    engine.draw_change(planes, step)
    change = to_image(planes).copy()
    engine.draw_change(planes, step, weight=plane)
    np.testing.assert_allclose(to_image(planes), known * change, atol=1e-5)


def test_bands_are_done_group_by_group_to_the_same_end(gaussians_of):
    bands, region = MOST_BANDS + 2, at_origin(20, 37)
    gaussians, rng = gaussians_of(2, 10, family="ordinary", bands=bands, shape=(20, 37)), np.random.default_rng(0)
    clear, engine = decided(gaussians, region), cuda.operators(gaussians, region)
    image = reference.render(gaussians, region)
    assert_close(engine.render()[clear], image[clear])
    target = (image - clear[..., None]).astype(np.float32)
    # Off by one on each clear pixel; on the others a Gaussian more or less is there, at 1/255.
    assert engine.draw(engine.new_planes(bands), target=to_planes(target)) == pytest.approx(
        clear.sum() * bands, rel=1e-3
    )
    tangent = rng.normal(size=(10, 5 + bands)).astype(np.float32)
    assert_close(engine.jvp(tangent)[clear], reference.jvp(gaussians, region, tangent=tangent)[clear])
    cotangent = cotangent_on(clear, bands, 0)
    assert_close(engine.vjp(cotangent), reference.vjp(gaussians, region, cotangent=cotangent))
    colors = rng.random((10, 1), np.float32)
    assert_close(
        engine.render(colors=colors)[clear], reference.render(replace(gaussians, colors=colors), region)[clear]
    )


# ---- identities ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [1.0, 0.75])
def test_gather_is_the_adjoint_of_draw_change(gaussians_of, family, share):
    gaussians, rng = gaussians_of(7, 10, family=family, shape=(45, 30)), np.random.default_rng(7)
    engine = compiled(cuda.operators(gaussians, at_origin(45, 30))).narrowed(share)
    step, cotangent = rng.normal(size=(10, 8)), to_planes(rng.normal(size=(45, 30, 3)).astype(np.float32))
    planes = engine.new_planes(3)
    engine.draw_change(planes, step)
    change = planes.astype(np.float64)
    gradient = engine.gather(cotangent)
    bound = np.linalg.norm(change) * np.linalg.norm(cotangent) + np.linalg.norm(gradient) * np.linalg.norm(step)
    assert abs((change * cotangent).sum() - (gradient * step).sum()) <= 1e-5 * bound


def test_narrowed_footprints_end_at_their_share_of_the_radius(gaussians_of):
    base, region = gaussians_of(1, 1, family="ordinary", bands=1, shape=(40, 45)), at_origin(40, 45)
    one = replace(base, colors=np.ones((1, 1)))
    narrow, distances = cuda.operators(one, region).narrowed(0.6).render()[..., 0], squared_distances(one, region)[0]
    np.testing.assert_array_equal(narrow > 0, distances <= (0.6 * CUTOFF) ** 2)


@pytest.mark.parametrize("seed", range(4))
def test_a_region_is_the_same_crop_of_the_whole_bit_for_bit(gaussians_of, seed):
    rng = np.random.default_rng(seed)
    gaussians = gaussians_of(seed, 15, shape=(50, 60))
    (y0, y1), (x0, x1) = np.sort(rng.choice(50, 2, replace=False)), np.sort(rng.choice(60, 2, replace=False))
    whole = compiled(cuda.operators(gaussians, at_origin(50, 60))).render()
    part = compiled(cuda.operators(gaussians, Region(y0=int(y0), y1=int(y1), x0=int(x0), x1=int(x1)))).render()
    np.testing.assert_array_equal(part, whole[y0:y1, x0:x1])


def test_rows_on_the_device_are_the_same_gaussians(gaussians_of):
    gaussians = gaussians_of(5, 12, shape=(30, 40), origin=(100, 200))
    region = at_origin(33, 38, y0=98, x0=203)
    rows = torch.from_numpy(gaussians.to_rows()).to(engine_device())
    direct = device_operators(rows, offset=(100 - 98, 200 - 203), height=33, width=38)
    planes = direct.new_planes(3)
    direct.draw(planes)
    np.testing.assert_array_equal(np.moveaxis(planes.cpu().numpy(), 0, 2), render(gaussians, region, engine="cuda"))


# ---- choosing it ----


@pytest.fixture
def no_memory():
    """Forget what was found out about the machine, before and after."""
    _what_cuda_lacks.cache_clear()
    yield
    _what_cuda_lacks.cache_clear()


def test_the_engine_can_be_asked_for_and_is_not_chosen_under_the_interpreter():
    assert resolve_engine("cuda") == "cuda"
    if INTERPRETED:
        assert resolve_engine("auto") == "cpu"


def test_without_a_card_cuda_is_refused_in_one_line_and_auto_is_the_cpu(monkeypatch, no_memory):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("smartsplat.render._CARDS", ())
    with pytest.raises(
        ConfigError, match=r"^engine 'cuda' cannot be used here: no NVIDIA card found; use --engine cpu"
    ):
        operators(Gaussians.empty(bands=1), at_origin(1, 1), engine="cuda")
    assert resolve_engine("auto") == "cpu"


def test_a_card_that_torch_cannot_use_is_as_none(monkeypatch, no_memory):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("smartsplat.render._CARDS", ("/",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        resolve_engine("cuda")
    assert resolve_engine("auto") == "cpu"


def test_without_torch_or_triton_the_message_says_what_to_install(monkeypatch, no_memory):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"torch and triton not installed \(pip install 'smartsplat\[gpu\]'\)"):
        resolve_engine("cuda")


def test_torch_is_not_loaded_where_there_is_no_card():
    code = "import sys; from smartsplat import render; render._CARDS = (); render.resolve_engine('auto'); "
    code += "sys.exit('torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
