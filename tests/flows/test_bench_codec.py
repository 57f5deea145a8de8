"""The bench of codecs counts real bytes, and its rates and gains are those of known curves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flows import bench_codec
from flows.bench_codec import AT_BITS, bd_rate, codec, compared, halved, plot_codec, psnr_at, stream_values, summary
from flows.settings import scene_config
from pipeline.plan import Resources
from smartsplat.errors import ConfigError
from smartsplat.metrics import score
from storage.scene import Scene

SERIAL = Resources(executor="serial", workers=1)
CODECS = ["JPEG", "WebP", "JPEG 2000", "AVIF 4:2:0", "AVIF 4:4:4", "JPEG XL"]

steps = st.lists(st.tuples(st.floats(0.05, 0.5), st.floats(0.1, 3)), min_size=3, max_size=12)


def curve_of(increments):
    """Return a curve that rises from 0.04 bits per pixel and 25 dB by factors ``1 + more bits`` and by dB."""
    bits, psnr = 0.04, 25.0
    points = [(bits, psnr)]
    for more, better in increments:
        bits, psnr = bits * (1 + more), psnr + better
        points.append((bits, psnr))
    return points


@given(steps, st.floats(0.75, 1.3))
def test_a_curve_shifted_in_bits_has_just_that_rate(increments, factor):
    curve = curve_of(increments)
    rate = bd_rate([(factor * bits, psnr) for bits, psnr in curve], curve, within=(0.001, 100))
    assert rate == pytest.approx(factor - 1, abs=1e-9)


@given(steps)
def test_rates_of_two_curves_undo_each_other(increments):
    curve = curve_of(increments)
    other = [(0.9 * bits + 0.01, psnr + 0.05) for bits, psnr in curve]
    there, back = bd_rate(curve, other, within=(0.001, 100)), bd_rate(other, curve, within=(0.001, 100))
    assert (1 + there) * (1 + back) == pytest.approx(1)


def test_the_rate_is_the_mean_over_the_psnr_in_common():
    # Straight in the logarithm of the bits: the ratio of the bits goes from 1 at 30 dB to 1 / 4 at 34 dB.
    reference = [(0.05 * 2 ** (psnr - 30), psnr) for psnr in (30.0, 31.0, 32.0, 33.0, 34.0)]
    curve = [(0.05 * 2 ** ((psnr - 30) / 2), psnr) for psnr in (30.0, 32.0, 34.0, 36.0)]
    assert bd_rate(curve, reference, within=(0.05, 10)) == pytest.approx(0.5 - 1)
    # Up to 0.2 bits per pixel the reference reaches 32 dB only.
    assert bd_rate(curve, reference, within=(0.05, 0.2)) == pytest.approx(2**-0.5 - 1)


def test_curves_with_nothing_in_common_have_no_rate():
    reference = [(0.1, 30.0), (0.2, 32.0)]
    assert bd_rate([(0.1, 35.0), (0.2, 37.0)], reference) is None
    assert bd_rate([(0.4, 30.0), (0.8, 32.0)], reference) is None
    assert bd_rate([(0.1, 30.0)], reference) is None


def test_results_that_cheaper_ones_beat_do_not_count():
    curve = [(0.1, 30.0), (0.2, 32.0), (0.3, 34.0)]
    assert psnr_at([(0.25, 31.0), *reversed(curve)], 0.15) == psnr_at(curve, 0.15)


def test_gains_are_differences_at_the_same_bits():
    def rows(*points):
        return [
            {"bytes": 1000 * bits, "stream_bytes": 500 * bits, "bits_per_pixel": bits, "psnr": psnr}
            for bits, psnr in points
        ]

    row = compared(rows((0.08, 30), (0.16, 33), (0.32, 36)), rows((0.08, 29), (0.16, 32), (0.32, 35)), name="x")
    assert list(row["gains"]) == [f"{bits:g}" for bits in AT_BITS]
    assert row["gains"]["0.05"] is None
    assert [gain for gain in row["gains"].values() if gain is not None] == pytest.approx([1.0] * 5)
    assert row["bd_rate"] == pytest.approx(100 * (2 ** (-1 / 3) - 1))
    assert row["bd_rate_streams"] == pytest.approx(100 * (2 ** (-4 / 3) - 1))


@pytest.mark.parametrize(("height", "width"), [(8, 6), (9, 7)])
def test_halving_is_a_box_filter(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).reduce(2))[: height // 2, : width // 2]
    np.testing.assert_array_equal(halved(pixels), expected)


def test_bytes_of_a_scene_are_all_accounted_for(photo_file, tmp_path):
    row = bench_codec.compressed(photo_file, tmp_path, config=scene_config("draft", ratio=12), resources=SERIAL)
    assert row["ratio"] == 12
    assert 1 <= row["over_nominal"] < 1.1
    assert row["bytes"] == row["stream_bytes"] + row["other_bytes"]
    assert row["bits_per_pixel"] == pytest.approx(8 * row["bytes"] / (150 * 200))
    assert row["bits_per_gaussian"] == pytest.approx(8 * row["stream_bytes"] / row["gaussians"])
    assert sum(row["bits"].values()) == pytest.approx(row["bits_per_gaussian"])
    assert {"position", "precision", "area", "color", "aspect", "rotation", "rest"} == set(row["bits"])
    assert all(amount >= 0 for amount in row["bits"].values())
    assert abs(row["quantisation_loss"]) < 3
    assert row["added_share"] == pytest.approx(row["added_seconds"] / row["fit_seconds"])
    assert min(row["encode_rate"], row["decode_rate"], row["fullest_tile_ms"]) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_streams_measured_are_those_on_the_disk(compressed):
    scene = Scene.open(compressed[0])
    (shard,) = (path for path in (compressed[0] / "gaussians").iterdir() if path.name != "zarr.json")
    around = len(scene.grid) * (4 + 16) + 4  # checksums, and an index with its own
    assert stream_values(scene)["stream_bytes"] == shard.stat().st_size - around


def test_images_of_another_kind_are_refused(tmp_path):
    pytest.importorskip("imagecodecs")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "gray.png")
    with pytest.raises(ConfigError, match="1 bands of uint8"):
        next(codec([tmp_path / "gray.png"], resources=SERIAL))


def test_an_unknown_codec_is_refused_with_those_there_are(big_photo):
    pytest.importorskip("imagecodecs")
    with pytest.raises(ConfigError, match="codec 'PNG' is unknown; use JPEG, WebP"):
        next(codec([big_photo], against=["JPEG", "PNG"], resources=SERIAL))


@pytest.fixture(scope="module")
def big_photo(tmp_path_factory):
    """A photo of 320 x 400 px."""
    from sklearn.datasets import load_sample_images

    path = tmp_path_factory.mktemp("codec") / "china.png"
    Image.fromarray(np.ascontiguousarray(load_sample_images().images[0][60:380, 120:520])).save(path)
    return path


def test_codecs_are_held_against_each_other_at_real_bytes(big_photo, tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    (found,) = codec([big_photo], ratios=[60, 30], preset="draft", halve=True, resources=SERIAL)
    assert (found["image"], found["height"], found["width"]) == ("china.png", 160, 200)
    assert list(found["refused"]) == ["60"]
    assert [row["ratio"] for row in found["fits"]] == [30]
    assert list(found["references"]) == CODECS
    for rows in found["references"].values():
        assert [row["bytes"] for row in rows] == sorted(row["bytes"] for row in rows)
        assert all(row["bits_per_pixel"] == 8 * row["bytes"] / (160 * 200) for row in rows)
        assert rows[-1]["psnr"] > rows[0]["psnr"]
    one = found["references"]["WebP"][-1]
    with Image.open(big_photo) as picture:
        pixels = halved(np.asarray(picture))
    data = imagecodecs.webp_encode(pixels, level=one["setting"], method=6, lossless=False)
    assert len(data) == one["bytes"]
    assert score(pixels, imagecodecs.webp_decode(data), peak=255).psnr == one["psnr"]
    assert [row["codec"] for row in summary([found, found])] == CODECS
    plot_codec(found, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 1000


def test_the_command_writes_all_of_it(smartsplat, photo_file, tmp_path):
    pytest.importorskip("imagecodecs")
    options = ("--ratios", "24,20", "--preset", "draft", "--executor", "serial", "--workers", "1")
    run = smartsplat("bench", "codec", photo_file, *options, "--output", tmp_path / "out", "--json")
    assert run.returncode == 0, run.stderr
    printed = json.loads(run.stdout)
    assert printed == json.loads((tmp_path / "out" / "codec.json").read_text())
    assert [row["ratio"] for row in printed["images"][0]["fits"]] == [24, 20]
    assert [row["codec"] for row in printed["means"]] == CODECS
    assert not any(math.isnan(row["bd_rate"] or 0) for row in printed["means"])
    assert (tmp_path / "out" / "1-china.png").is_file()
