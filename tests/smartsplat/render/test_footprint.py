"""Extents and reach against every pixel a footprint touches, found by looking at each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.gaussians import Gaussians
from smartsplat.render.footprint import CUTOFF, half_extents, max_scale, reach_beyond

few = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from(["tiny", "ordinary", "huge", "needles", "outside", "mixed"])
ROUNDING = 1e-9  # px: float64 arithmetic on lengths up to 10^3 px


def covariances(gaussians):
    """Return ``R diag(s^2) R^T`` of each Gaussian, written out."""
    rotations, (first, second) = gaussians.rotations.astype(np.float64), gaussians.scales.astype(np.float64).T
    axes = np.array([[np.cos(rotations), -np.sin(rotations)], [np.sin(rotations), np.cos(rotations)]])
    return np.einsum("ikn,kn,jkn->nij", axes, np.stack([first, second]) ** 2, axes)


def touched(gaussians, margin):
    """Yield the offsets (y, x) from the mean of the pixel centres in each footprint."""
    for mean, covariance in zip(gaussians.means.astype(np.float64), covariances(gaussians), strict=True):
        low = np.floor(mean) - margin
        centres = np.stack(np.meshgrid(*(np.arange(2 * margin + 1) + start + 0.5 for start in low), indexing="ij"), -1)
        offsets = (centres - mean).reshape(-1, 2)
        inside = np.einsum("pi,ij,pj->p", offsets, np.linalg.inv(covariance), offsets) <= CUTOFF**2
        yield offsets[inside]


@given(seeds, families)
@few
def test_every_touched_pixel_lies_within_the_half_extents(gaussians_of, seed, family):
    gaussians = gaussians_of(seed, 4, family=family)
    extents = half_extents(gaussians)
    for offsets, extent in zip(touched(gaussians, margin=math.ceil(extents.max()) + 2), extents, strict=True):
        assert (np.abs(offsets) <= extent + ROUNDING).all()


@given(seeds, families)
@few
def test_half_extents_are_the_ellipses_bounding_box(gaussians_of, seed, family):
    gaussians = gaussians_of(seed, 30, family=family)
    diagonal = np.einsum("nii->ni", covariances(gaussians))
    np.testing.assert_allclose(half_extents(gaussians), CUTOFF * np.sqrt(diagonal), rtol=ROUNDING)


@given(seeds, families, st.integers(1, 80), st.integers(1, 80), st.integers(1, 20))
@few
def test_reach_is_the_least_whole_distance_no_footprint_extends_beyond(
    gaussians_of, seed, family, height, width, count
):
    gaussians = gaussians_of(seed, count, family=family, shape=(height, width))
    reach = reach_beyond(gaussians, height=height, width=width)
    low = gaussians.means - half_extents(gaussians)
    high = gaussians.means + half_extents(gaussians)
    farthest = max((-low).max(), (high - [height, width]).max())
    assert reach >= farthest
    assert reach == 0 or reach - 1 < farthest


def test_reach_is_attained_by_pixels_to_one_px(gaussians_of):
    gaussians = gaussians_of(1, 20, family="ordinary", shape=(20, 20))
    reach = reach_beyond(gaussians, height=20, width=20)
    pixels = np.concatenate(
        [mean + offsets for mean, offsets in zip(gaussians.means, touched(gaussians, margin=40), strict=True)]
    )
    farthest = max((-pixels).max(), (pixels - 20).max())  # of pixel centres: half a px inside the pixel's own edge
    # The last pixel centre inside an ellipse's tip may lie one pixel short of it along the axis, and the tip may fall
    # between two columns, so the bound is tight to 2 px here; the bound on the ellipse itself is tight to 1 px.
    assert reach - 2 <= farthest <= reach


def test_a_set_of_none_reaches_nowhere():
    assert reach_beyond(Gaussians.empty(bands=3), height=5, width=5) == 0


@given(st.floats(1, 2000), st.floats(-math.pi, math.pi))
@few
def test_the_largest_scale_reaches_as_far_as_allowed_and_no_farther(reach, rotation):
    largest = max_scale(reach)
    one = Gaussians(
        means=np.zeros((1, 2)), scales=np.full((1, 2), largest), rotations=np.array([rotation]), colors=np.ones((1, 1))
    )
    # Scales are float32, which rounds by up to 6e-8 of the value.
    np.testing.assert_allclose(half_extents(one), reach, rtol=1e-7)


def test_at_the_cutoff_the_weight_is_one_part_in_255():
    assert math.exp(-(CUTOFF**2) / 2) == pytest.approx(1 / 255, rel=1e-12)
