"""The benches of tiling and of the pipeline count what they say they count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.bench_scale import SEAM_PX, covered_seconds, pipeline, seam_band, tiling
from pipeline.plan import Resources
from smartsplat.config import FitConfig, SceneConfig


@given(st.integers(1, 200), st.integers(1, 200), st.integers(SEAM_PX, 90))
def test_the_band_is_what_lies_within_some_pixels_of_a_seam(height, width, tile):
    def near(size):
        seams = np.arange(tile, size, tile)
        return (np.abs(np.arange(size)[:, None] + 0.5 - seams) < SEAM_PX).any(axis=1)

    expected = near(height)[:, None] | near(width)
    np.testing.assert_array_equal(seam_band(height, width, tile=tile), expected)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12))
def test_covered_seconds_count_each_moment_once(spans):
    moments = {start + second for start, length in spans for second in range(length)}
    assert covered_seconds([(start, start + length) for start, length in spans]) == len(moments)


def test_tiling_is_held_against_one_tile_with_the_same_passes(photo_file):
    resources = Resources(executor="serial", workers=1)
    whole, *tiled = tiling(photo_file, count=300, tiles=[80], halos=[8, 16], preset="draft", resources=resources)
    assert (whole["tile"], whole["gain"], whole["seam_psnr"]) == (200, 0.0, None)
    assert [(row["tile"], row["halo"]) for row in tiled] == [(80, 8), (80, 16)]
    for row in tiled:
        assert row["gain"] == pytest.approx(row["psnr"] - whole["psnr"])
        assert abs(row["gain"]) < 1.5  # dB: the same fit but for where it was cut
        assert abs(row["seam_gain"]) < 3
        assert row["seam_psnr"] != row["psnr"]


def test_the_pipeline_is_held_against_the_tools_it_rests_on(photo_file):
    nothing = FitConfig(color_sweeps=1, stages=0, replacements=0, final_pairs=())
    config = SceneConfig(count=300, tile=80, halo=8, fit=nothing)
    rows = {row["stage"]: row for row in pipeline(photo_file, config=config, resources=Resources(executor="serial"))}
    assert set(rows) == {"ingest", "sample", "fit", "encode", "evaluate", "decode"}
    for row in rows.values():
        assert row["seconds"] > 0
        assert row["rate"] > 0
        assert (row["share"] is None) == (row["raw"] is None)
    assert rows["ingest"]["share"] == pytest.approx(rows["ingest"]["rate"] / rows["ingest"]["raw"])
    assert 0 <= rows["fit"]["idle"] < 1
    assert rows["fit"]["workers"] == pytest.approx(1, abs=0.01)  # one after another
