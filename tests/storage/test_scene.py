"""A scene on disk: what was written reads back, for anyone; one changed byte is noticed and its tile named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from smartsplat.codec import Steps, decode_tile, encode_tile
from smartsplat.config import SceneConfig
from smartsplat.errors import StoreError
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region, TileId
from smartsplat.normalization import Normalization
from smartsplat.render.footprint import reach_beyond
from storage.scene import SCENE_FORMAT, Manifest, Scene, tiles_reaching

STEPS = Steps(mean=0.25, area=0.1, aspect=0.12, rotation=0.08, color=0.03, base_scale=2.0)
COUNTS = np.array([[5, 0, 7], [12, 3, 1]])


def manifest_of(shape, **changes):
    config = SceneConfig(count=1000, tile=25, halo=5)
    return Manifest(
        shape=shape,
        dtype="uint8",
        source_name="bild für β.tif",
        source_fingerprint="abc",
        config=config,
        digest="0123456789abcdef",
        count=1000,
        **changes,
    )


def write_scene(path, counts, make, bands=3):
    """Write a finished scene with `counts` Gaussians a tile; return it and its tiles as they decode."""
    rows, cols = counts.shape
    scene = Scene.create(path, manifest_of((25 * rows, 25 * cols - 9, bands)))
    scene.create_gaussians(STEPS, capacity=int(counts.max()))
    decoded, table = {}, np.zeros((rows, cols, 2), np.int32)
    for where in scene.shards():
        lines = []
        for row in range(where[0].start, where[0].stop):
            lines.append([])
            for col in range(where[1].start, where[1].stop):
                tile, core = TileId(row, col), scene.grid.core(TileId(row, col))
                count = int(counts[row, col])
                gaussians = make(100 * row + col, count, family="ordinary", bands=bands, shape=core.shape)
                lines[-1].append(gaussians)
                decoded[tile] = decode_tile(
                    encode_tile(gaussians, STEPS), STEPS, bands=bands, max_count=count, origin=core.origin
                )
                reach = reach_beyond(decoded[tile], height=core.height, width=core.width)
                table[row, col] = count, reach
        scene.write_shard(where, lines)
    scene.write_tiles(table)
    scene.update(
        complete=True,
        normalization=Normalization(offset=0.0, span=255.0),
        quality={"psnr": 31.25, "ssim": 0.9, "ms_ssim": None},
    )
    return scene, decoded


@pytest.fixture
def written(tmp_path, gaussians_of):
    return write_scene(tmp_path / "s.zarr", COUNTS, gaussians_of)


def assert_reads_back(path, decoded):
    scene = Scene.open(path)
    scene.check_arrays()
    table = scene.tiles()
    for tile, expected in decoded.items():
        found = scene.read_tile(tile, count=int(table[tile.row, tile.col, 0]))
        np.testing.assert_array_equal(found.to_rows(), expected.to_rows())
        assert found.origin == expected.origin == scene.grid.core(tile).origin


def shard_files(path):
    return sorted(file for file in (path / "gaussians").rglob("c.*") if file.is_file())


def unreadable(scene, table):
    """Return the tiles that `read_tile` refuses, each by its own name; anything but StoreError propagates."""
    refused = {}
    for tile in scene.grid:
        try:
            scene.read_tile(tile, count=int(table[tile.row, tile.col, 0]))
        except StoreError as error:
            refused[tile] = str(error)
    assert all(f"tile {tile} " in message for tile, message in refused.items())
    return set(refused)


# ---- what was written reads back ----


def test_a_scene_reads_back_with_all_it_says_of_itself(written, tmp_path):
    scene, decoded = written
    assert_reads_back(scene.path, decoded)
    again = Scene.open(scene.path)
    assert again.manifest == scene.manifest
    assert again.manifest.complete
    assert again.manifest.quality == {"psnr": 31.25, "ssim": 0.9, "ms_ssim": None}
    assert again.manifest.normalization == Normalization(offset=0.0, span=255.0)
    np.testing.assert_array_equal(again.tiles()[..., 0], COUNTS)


@pytest.mark.parametrize("bands", [1, 4])
def test_other_numbers_of_bands_read_back(tmp_path, gaussians_of, bands):
    scene, decoded = write_scene(tmp_path / "s", COUNTS, gaussians_of, bands=bands)
    assert_reads_back(scene.path, decoded)


def test_grids_larger_than_a_shard_and_not_a_multiple_of_it_read_back(tmp_path, gaussians_of):
    counts = np.random.default_rng(0).integers(0, 4, (9, 17))
    scene, decoded = write_scene(tmp_path / "s", counts, gaussians_of)
    assert len(shard_files(scene.path)) == len(list(scene.shards())) == 6
    assert_reads_back(scene.path, decoded)


def test_a_scene_of_no_gaussians_reads_back_and_its_tiles_are_stored(tmp_path, gaussians_of):
    scene, decoded = write_scene(tmp_path / "s", np.zeros((2, 3), int), gaussians_of)
    assert_reads_back(scene.path, decoded)
    (file,) = shard_files(scene.path)
    assert (chunk_ranges(file, 6)[:, 1] > 0).all()


PLAIN_READER = """
import sys
import numpy as np, zarr
assert not any(name.split(".")[0] in ("storage", "smartsplat") for name in sys.modules)
np.save(sys.argv[2], zarr.open(sys.argv[1], mode="r")["gaussians"][...])
assert "storage.codecs" in sys.modules
"""


def test_anyone_reads_the_same_numbers_with_plain_zarr_and_nan_as_padding(written, tmp_path):
    scene, decoded = written
    output = tmp_path / "rows.npy"
    subprocess.run([sys.executable, "-c", PLAIN_READER, scene.path, output], check=True, cwd=tmp_path, timeout=120)
    rows = np.load(output)
    assert rows.dtype == np.float32
    assert rows.shape == (2, 3, 12, 8)
    for tile, expected in decoded.items():
        count = len(expected)
        np.testing.assert_array_equal(rows[tile.row, tile.col, :count], expected.to_rows())
        assert np.isnan(rows[tile.row, tile.col, count:]).all()


def test_the_measured_ratio_counts_every_file_but_the_working_data(written):
    scene, _ = written
    files = [file for file in scene.path.rglob("*") if file.is_file() and "work" not in file.parts]
    assert scene.nbytes == sum(file.stat().st_size for file in files)
    assert scene.measured_ratio == 50 * 66 * 3 / scene.nbytes
    (scene.path / "work" / "big").write_bytes(bytes(10**6))
    assert scene.measured_ratio == 50 * 66 * 3 / scene.nbytes
    scene.discard_work()
    assert not scene.has_work


def test_failures_of_a_stage_are_kept_until_it_runs_clean(written):
    scene, _ = written
    scene.record_failures("fit", {"(0, 1)": "no memory"})
    scene.record_failures("encode", {"(1, 1)": "disk"})
    assert Scene.open(scene.path).failures() == {"fit": {"(0, 1)": "no memory"}, "encode": {"(1, 1)": "disk"}}
    scene.record_failures("fit", {})
    assert scene.failures() == {"encode": {"(1, 1)": "disk"}}


# ---- what is not a scene ----


def test_what_is_not_a_scene_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no such scene"):
        Scene.open(tmp_path / "none")
    with pytest.raises(StoreError, match="not a scene"):
        Scene.open(tmp_path)
    (tmp_path / "zarr.json").write_text('{"zarr_format":3,"node_type":"group","attributes":{"a":1}}')
    with pytest.raises(StoreError, match="not a scene"):
        Scene.open(tmp_path)


def test_creating_a_scene_where_something_is_leaves_that_alone(tmp_path, gaussians_of):
    scene, decoded = write_scene(tmp_path / "s", COUNTS, gaussians_of)
    with pytest.raises(OSError):
        Scene.create(scene.path, manifest_of((50, 66, 3)))
    assert_reads_back(scene.path, decoded)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["s"]


def test_an_unfinished_scene_has_no_table_of_tiles(tmp_path):
    scene = Scene.create(tmp_path / "s", manifest_of((50, 66, 3)))
    assert not scene.manifest.complete
    with pytest.raises(StoreError):
        scene.tiles()


@pytest.mark.parametrize("version", [SCENE_FORMAT + 1, 0, None, "1"])
def test_an_unknown_format_version_is_refused_with_the_way_out(written, version):
    scene, _ = written
    file = scene.path / "zarr.json"
    values = json.loads(file.read_bytes())
    values["attributes"]["smartsplat"]["format"] = version
    file.write_text(json.dumps(values))
    with pytest.raises(StoreError, match=f"format {version} is unknown.*upgrade"):
        Scene.open(scene.path)


# ---- damage ----


def chunk_ranges(file, chunks):
    """Return offset and length of each chunk, from the index at the end of a shard."""
    data = file.read_bytes()
    return np.frombuffer(data[-4 - 16 * chunks : -4], "<u8").reshape(chunks, 2).astype(np.int64)


def test_a_changed_byte_anywhere_in_a_shard_is_refused_by_exactly_the_tiles_it_belongs_to(written):
    scene, _ = written
    (file,) = shard_files(scene.path)
    original, table, tiles = file.read_bytes(), scene.tiles(), list(scene.grid)
    ranges = chunk_ranges(file, len(tiles))
    assert ranges[:, 1].sum() == len(original) - 4 - 16 * len(tiles)  # chunks, index, checksum, and nothing else
    seen = set()
    for at in range(0, len(original), 5):
        file.write_bytes(bytes([*original[:at], original[at] ^ (1 << at % 8), *original[at + 1 :]]))
        expected = {tile for tile, (start, size) in zip(tiles, ranges, strict=True) if start <= at < start + size}
        in_index = at >= len(original) - 4 - 16 * len(tiles)
        assert unreadable(Scene.open(scene.path), table) == (set(tiles) if in_index else expected)
        seen |= expected
    assert seen == set(tiles)


def test_a_truncated_shard_is_refused(written):
    scene, _ = written
    (file,) = shard_files(scene.path)
    original, table = file.read_bytes(), scene.tiles()
    for size in [0, 1, 3, 4, 50, 99, len(original) // 2, len(original) - 97, len(original) - 1]:
        file.write_bytes(original[:size])
        # An empty tile has nothing to lose; whether it is refused too does not matter.
        assert unreadable(Scene.open(scene.path), table) >= {t for t in scene.grid if table[t.row, t.col, 0]}


def test_a_missing_shard_is_refused_by_every_tile_that_had_gaussians(written):
    scene, _ = written
    table = scene.tiles()
    shard_files(scene.path)[0].unlink()
    assert unreadable(Scene.open(scene.path), table) >= {tile for tile in scene.grid if table[tile.row, tile.col, 0]}


def test_a_shard_of_another_scene_is_refused(written, tmp_path, gaussians_of):
    scene, _ = written
    other, _ = write_scene(tmp_path / "other", COUNTS[::-1, ::-1].copy(), gaussians_of)
    shutil.copy(shard_files(other.path)[0], shard_files(scene.path)[0])
    assert unreadable(Scene.open(scene.path), scene.tiles())


def look_at(path, decoded):
    """Open and check a scene; return whether it was refused. If it was not, all it says must be right."""
    try:
        scene = Scene.open(path)
        scene.check_arrays()
        scene.tiles()
    except StoreError:
        return True
    assert_reads_back(path, decoded)
    return False


@pytest.mark.parametrize("name", ["zarr.json", "gaussians/zarr.json", "tiles/zarr.json"])
def test_a_changed_byte_in_metadata_is_refused_or_changes_nothing(written, name):
    scene, decoded = written
    file = scene.path / name
    original, manifest, harmless = file.read_bytes(), scene.manifest, []
    for at in range(len(original)):
        file.write_bytes(bytes([*original[:at], original[at] ^ (1 << at % 8), *original[at + 1 :]]))
        if not look_at(scene.path, decoded):
            assert Scene.open(scene.path).manifest == manifest
            harmless.append(original[max(0, at - 10) : at + 10])
    # Nothing of ours is harmless; of what Zarr adds around it, an unknown or a spare name may be.
    assert len(harmless) <= (len(original) // 50 if name == "zarr.json" else 0), harmless


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"NaN", b"Infinity", b"[]", b'"', b"{}"])
def test_numbers_that_json_should_not_hold_are_refused(written, number):
    scene, decoded = written
    for name, before in [("zarr.json", b"31.25"), ("zarr.json", b'"count": 1000'), ("gaussians/zarr.json", b"0.12")]:
        file = scene.path / name
        original = file.read_bytes()
        assert before in original
        prefix = before[: before.rindex(b":") + 1] if b":" in before else b""
        file.write_bytes(original.replace(before, prefix + number))
        assert look_at(scene.path, decoded)
        file.write_bytes(original)


@pytest.mark.parametrize("size", [0, 1, 100])
@pytest.mark.parametrize("name", ["zarr.json", "gaussians/zarr.json", "tiles/zarr.json"])
def test_truncated_or_missing_metadata_is_refused(written, name, size):
    scene, decoded = written
    file = scene.path / name
    file.write_bytes(file.read_bytes()[:size])
    assert look_at(scene.path, decoded)
    file.unlink()
    assert look_at(scene.path, decoded)


def test_a_damaged_table_of_tiles_is_refused(written):
    scene, decoded = written
    (file,) = (scene.path / "tiles").glob("c.*")
    original = file.read_bytes()
    for at in range(len(original)):
        file.write_bytes(bytes([*original[:at], original[at] ^ 2, *original[at + 1 :]]))
        assert look_at(scene.path, decoded)
    file.unlink()
    assert look_at(scene.path, decoded)


# ---- how good each tile is ----


def test_the_quality_of_tiles_is_kept_to_a_tenth_of_a_decibel_and_leaves_counts_and_reaches_alone(written):
    scene, decoded = written
    before = scene.tiles()
    assert np.isnan(scene.tile_psnr()).all(), "not known yet"
    psnr = np.random.default_rng(0).uniform(0, 100, scene.grid.shape)
    psnr[0, :3] = np.nan, np.inf, -3.0
    scene.write_tile_psnr(psnr)
    again = Scene.open(scene.path)
    found = again.tile_psnr()
    np.testing.assert_allclose(found[1:], psnr[1:], atol=0.05 + 1e-9)
    np.testing.assert_array_equal(found[0, :3], [np.nan, 100, 0])
    np.testing.assert_array_equal(again.tiles(), before)
    assert_reads_back(scene.path, decoded)


def test_the_table_of_tiles_takes_no_more_bytes_than_are_set_aside_for_it(tmp_path):
    rng = np.random.default_rng(0)
    for number, side in enumerate((1, 3, 40)):
        manifest = manifest_of((25 * side, 25 * side, 3))
        scene = Scene.create(tmp_path / f"{number}", manifest)
        scene.create_gaussians(STEPS, capacity=1)
        scene.write_tiles(np.stack([rng.integers(0, 9000, (side, side)), rng.integers(0, 200, (side, side))], axis=-1))
        scene.write_tile_psnr(rng.uniform(15, 45, (side, side)))
        (file,) = (scene.path / "tiles").glob("c.*")
        assert file.stat().st_size <= 64 + 8 * side**2, "see pipeline.rate"


# ---- which tiles a region needs ----


def test_the_tiles_reaching_a_region_are_all_whose_footprints_meet_it(written):
    scene, decoded = written
    table = scene.tiles()
    rng = np.random.default_rng(0)
    for _ in range(60):
        y0, x0 = int(rng.integers(0, 50)), int(rng.integers(0, 66))
        region = Region(y0=y0, y1=min(50, y0 + int(rng.integers(1, 20))), x0=x0, x1=min(66, x0 + 5))
        near = tiles_reaching(table, scene.grid, region, slack=0)
        assert near == sorted(near)
        for tile, gaussians in decoded.items():
            core, reach = scene.grid.core(tile), int(table[tile.row, tile.col, 1])
            meets = len(gaussians) > 0 and not core.expand(reach).intersect(region).is_empty
            assert (tile in near) == meets
            wider = tiles_reaching(table, scene.grid, region, slack=200)
            assert (tile in wider) == (len(gaussians) > 0)


def test_no_tiles_reach_a_region_of_a_scene_without_gaussians():
    grid = manifest_of((50, 66, 3)).grid
    empty = np.zeros((*grid.shape, 2), np.int32)
    assert tiles_reaching(empty, grid, grid.bounds, slack=10) == []
    assert len(Gaussians.empty(bands=3)) == 0
