"""Regions against sets of pixels; tiles, phases and reach against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.errors import ConfigError
from smartsplat.geometry import (
    PHASES_PER_SWEEP,
    REACH_IN_HALOS,
    Region,
    TileGrid,
    TileId,
    block_grid,
    colors_of,
    default_halo,
    input_sweep,
    largest_halo,
    phase_of,
)

few = settings(deadline=None, max_examples=150)


def pixels_of(region):
    return {(y, x) for y in range(region.y0, region.y1) for x in range(region.x0, region.x1)}


@st.composite
def regions(draw, low=-6, high=9):
    """Regions that hold a pixel."""
    y0, x0 = (draw(st.integers(low, high - 1)) for _ in range(2))
    return Region(y0=y0, y1=draw(st.integers(y0 + 1, high)), x0=x0, x1=draw(st.integers(x0 + 1, high)))


@st.composite
def any_regions(draw, low=-6, high=9):
    """Regions, empty and inverted ones too."""
    y0, y1, x0, x1 = (draw(st.integers(low, high)) for _ in range(4))
    return Region(y0=y0, y1=y1, x0=x0, x1=x1)


@st.composite
def grids(draw, widest=5, sides=7):
    """Small grids whose last row and column are often cut, down to one pixel, with the largest halo often."""
    halo = draw(st.integers(0, widest))
    tile = max(1, (REACH_IN_HALOS + 1) * halo + draw(st.integers(0, 3)))
    height, width = (max(1, draw(st.integers(1, sides)) * tile + draw(st.integers(-2, 1))) for _ in range(2))
    return TileGrid(height=height, width=width, tile=tile, halo=halo)


# ---- regions are sets of pixels ----


@given(regions(), regions())
@few
def test_region_operations_are_those_on_sets_of_pixels(a, b):
    assert a.contains(b) == (pixels_of(b) <= pixels_of(a))
    assert a.height * a.width == len(pixels_of(a))
    assert a.shape == (a.height, a.width)
    assert a.origin == min(pixels_of(a))


@given(any_regions(), any_regions())
@few
def test_an_intersection_holds_the_common_pixels_and_is_never_inverted(a, b):
    common = a.intersect(b)
    assert pixels_of(common) == pixels_of(a) & pixels_of(b)
    assert a.is_empty == (not pixels_of(a))
    assert common.height >= 0
    assert common.width >= 0


@given(regions(), st.integers(-5, 5), st.integers(-5, 5))
@few
def test_shift_moves_every_pixel(region, dy, dx):
    assert pixels_of(region.shift(dy, dx)) == {(y + dy, x + dx) for y, x in pixels_of(region)}


@given(regions(), st.integers(0, 4))
@few
def test_expand_adds_the_pixels_within_a_distance(region, distance):
    steps = range(-distance, distance + 1)
    grown = {(y + dy, x + dx) for y, x in pixels_of(region) for dy in steps for dx in steps}
    assert pixels_of(region.expand(distance)) == grown


@given(regions(low=0), st.data())
@few
def test_slices_pick_the_regions_pixels_from_any_array_that_covers_it(outer, data):
    y0, x0 = data.draw(st.integers(outer.y0, outer.y1 - 1)), data.draw(st.integers(outer.x0, outer.x1 - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, outer.y1)), data.draw(st.integers(x0 + 1, outer.x1))
    region = Region(y0=y0, y1=y1, x0=x0, x1=x1)
    scene = np.arange(100).reshape(10, 10)
    expected = [scene[pixel] for pixel in sorted(pixels_of(region))]
    assert scene[region.slices].ravel().tolist() == expected
    assert scene[outer.slices][region.slices_within(outer)].ravel().tolist() == expected


@given(regions(low=0, high=10**7))
@few
def test_parse_reads_what_str_writes(region):
    assert Region.parse(str(region)) == region
    assert Region.parse(f"  {region.y0}:{region.y1} , {region.x0}:{region.x1} ") == region


@pytest.mark.parametrize(
    "text",
    ["", "1:2", "1:2,3", "-1:2,0:4", "1:2;0:4", "1:2,0:4,5:6", "1.5:2,0:4", "a:b,c:d", "4:4,0:9", "0:9,5:4", "0:9,:4"],
)
def test_parse_refuses_other_forms_and_empty_regions_and_names_the_text(text):
    with pytest.raises(ConfigError) as caught:
        Region.parse(text)
    assert repr(text) in str(caught.value)


# ---- tiles ----


@given(grids())
@few
def test_cores_partition_the_scene(grid):
    seen = np.zeros((grid.height, grid.width), int)
    for tile in grid:
        core = grid.core(tile)
        assert not core.is_empty
        assert grid.bounds.contains(core)
        seen[core.slices] += 1
    assert (seen == 1).all()
    assert len(grid) == len(list(grid)) == len(set(grid)) == grid.rows * grid.cols


@given(grids())
@few
def test_padded_is_every_pixel_of_the_scene_within_halo_of_the_core(grid):
    for tile in grid:
        padded = grid.padded(tile)
        assert padded.contains(grid.core(tile))
        assert grid.bounds.contains(padded)
        assert pixels_of(padded) == pixels_of(grid.core(tile).expand(grid.halo)) & pixels_of(grid.bounds)


@given(grids(widest=1))
@few
def test_neighbors_are_symmetric_and_those_one_step_away(grid):
    for tile in grid:
        expected = [
            other for other in grid if other != tile and max(abs(other.row - tile.row), abs(other.col - tile.col)) == 1
        ]
        assert list(grid.neighbors(tile)) == expected
        assert all(tile in grid.neighbors(other) for other in expected)


@given(grids())
@few
def test_two_tiles_of_one_color_are_never_neighbors_and_the_colors_partition_the_tiles(grid):
    for tile in grid:
        assert all(other.color != tile.color for other in grid.neighbors(tile))
    assert sorted(tile for color in range(PHASES_PER_SWEEP) for tile in grid.of_color(color)) == list(grid)
    assert all(tile.color == color for color in range(PHASES_PER_SWEEP) for tile in grid.of_color(color))


@given(grids(sides=5))
@few
def test_no_footprint_of_a_tile_meets_the_padded_region_of_another_tile_of_its_color(grid):
    # A mean lies in its core and its footprint extends at most `reach` from it: all it can touch is this region.
    for color in range(PHASES_PER_SWEEP):
        for a, b in itertools.permutations(grid.of_color(color), 2):
            assert grid.core(a).expand(grid.reach).intersect(grid.padded(b)).is_empty


@given(grids())
@few
def test_only_neighbors_reach_into_a_padded_region(grid):
    # A fit freezes its 8 neighbours only: what lies farther away must not matter to it.
    for tile in grid:
        for other in set(grid) - {tile, *grid.neighbors(tile)}:
            assert grid.core(other).expand(grid.reach).intersect(grid.padded(tile)).is_empty


@given(grids(), any_regions(low=-5, high=40))
@few
def test_within_is_every_tile_whose_core_meets_the_region(grid, region):
    brute = [tile for tile in grid if pixels_of(grid.core(tile)) & pixels_of(region)]
    assert list(grid.within(region)) == brute


# ---- phases ----


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 50))
@few
def test_phases_count_up_through_the_colors_and_then_the_sweeps(row, col, sweep):
    tile = TileId(row, col)
    assert divmod(phase_of(tile, sweep), PHASES_PER_SWEEP) == (sweep, tile.color)
    assert tile.color == 2 * (row % 2) + col % 2


@given(grids(widest=1), st.integers(1, 5))
@few
def test_a_jobs_inputs_were_written_in_an_earlier_phase_and_are_the_latest_such(grid, sweep):
    for tile in grid:
        for other in (tile, *grid.neighbors(tile)):
            source = input_sweep(tile, other, sweep=sweep)
            assert 0 <= source <= sweep
            assert phase_of(other, source) < phase_of(tile, sweep) <= phase_of(other, source + 1)


@given(grids())
@few
def test_the_colors_of_a_grid_are_those_its_tiles_have(grid):
    colors = colors_of(grid)
    assert colors == sorted(set(colors))
    for color in range(PHASES_PER_SWEEP):
        assert (color in colors) == bool(grid.of_color(color))


# ---- blocks of tiles ----

factors = st.sampled_from([1, 2, 4, 8])


@given(grids(), factors)
@few
def test_every_tile_lies_in_exactly_one_block_of_a_level(grid, factor):
    blocks = block_grid(grid, factor)
    seen = [tile for block in blocks for tile in grid.within(blocks.core(block))]
    assert sorted(seen) == list(grid)
    for block in blocks:
        core, tiles = blocks.core(block), grid.within(blocks.core(block))
        assert all(core.contains(grid.core(tile)) for tile in tiles)
        assert sum(grid.core(tile).height * grid.core(tile).width for tile in tiles) == core.height * core.width
        assert 1 <= len(tiles) <= factor**2


@given(grids(), factors)
@few
def test_a_block_is_in_pixels_of_its_level_what_a_tile_is_in_the_scenes(grid, factor):
    blocks = block_grid(grid, factor)
    assert (blocks.tile, blocks.halo, blocks.reach) == tuple(
        factor * side for side in (grid.tile, grid.halo, grid.reach)
    )
    assert blocks.bounds == grid.bounds
    for block in blocks:
        # So pixels of the level are never cut by a block's edge, but by the scene's.
        assert all(at % factor == 0 for at in (*blocks.core(block).origin, *blocks.padded(block).origin))
    assert block_grid(grid, 1) == grid


@given(grids(sides=5), st.sampled_from([2, 4]))
@few
def test_blocks_of_one_color_never_meet_so_they_may_be_visited_in_any_order(grid, factor):
    blocks = block_grid(grid, factor)
    for color in colors_of(blocks):
        for a, b in itertools.permutations(blocks.of_color(color), 2):
            # Footprints reach as far as those of tiles do, less than the blocks' own reach.
            assert blocks.core(a).expand(grid.reach).intersect(blocks.padded(b)).is_empty


# ---- what is refused ----


@given(st.integers(1, 400), st.integers(0, 400))
@few
def test_a_halo_is_accepted_up_to_the_largest_that_the_tile_admits(tile, halo):
    if halo <= largest_halo(tile):
        grid = TileGrid(height=9, width=9, tile=tile, halo=halo)
        assert grid.halo + grid.reach <= grid.tile
    else:
        with pytest.raises(ConfigError, match=f"--halo {largest_halo(tile)}"):
            TileGrid(height=9, width=9, tile=tile, halo=halo)


@pytest.mark.parametrize("halo", range(1, 103))
def test_the_narrowest_tile_for_a_halo_is_halo_and_reach(halo):
    assert TileGrid(height=9, width=9, tile=5 * halo, halo=halo).reach == 4 * halo
    with pytest.raises(ConfigError, match=f"--tile {5 * halo} or more"):
        TileGrid(height=9, width=9, tile=5 * halo - 1, halo=halo)


@given(st.integers(1, 5000))
@few
def test_the_default_halo_is_always_accepted(tile):
    assert 0 <= default_halo(tile) <= largest_halo(tile)


@pytest.mark.parametrize(
    "bad", [{"height": 0}, {"width": 0}, {"height": -3}, {"tile": 0}, {"tile": -512}, {"halo": -1}, {"halo": 600}]
)
def test_impossible_grids_are_refused(bad):
    with pytest.raises(ConfigError):
        TileGrid(**({"height": 100, "width": 100, "tile": 512, "halo": 64} | bad))
