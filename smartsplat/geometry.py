"""Pixel rectangles, tiles and phases, in integers only.

Pixel (y, x) covers ``[y, y + 1) x [x, x + 1)``; every pair is ordered (y, x); every range is half open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from smartsplat.errors import ConfigError

PHASES_PER_SWEEP = 4
"""Colours of the sweep: no two tiles of one colour are adjacent, so they are optimised in any order."""

REACH_IN_HALOS = 4
"""How far a footprint may reach beyond its mean, in halos."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A half-open rectangle of pixels, rows ``y0:y1`` and columns ``x0:x1``.

    Examples
    --------
    >>> Region(y0=0, y1=4, x0=2, x1=8).intersect(Region(y0=2, y1=9, x0=0, x1=5))
    Region(y0=2, y1=4, x0=2, x1=5)
    """

    y0: int
    y1: int
    x0: int
    x1: int

    @classmethod
    def parse(cls, text: str) -> Region:
        """Return the region written ``Y0:Y1,X0:X1``.

        Raises
        ------
        ConfigError
            If the text has another form, or the region is empty.

        Examples
        --------
        >>> Region.parse("10:20,0:5").shape
        (10, 5)
        """
        match = re.fullmatch(r"\s*(\d+):(\d+)\s*,\s*(\d+):(\d+)\s*", text)
        if match is None:
            raise ConfigError(f"region {text!r} is not of the form Y0:Y1,X0:X1, e.g. 0:512,1024:1536")
        y0, y1, x0, x1 = (int(group) for group in match.groups())
        region = cls(y0=y0, y1=y1, x0=x0, x1=x1)
        if region.is_empty:
            raise ConfigError(f"region {text!r} is empty: each range must end after it starts")
        return region

    def __str__(self) -> str:
        return f"{self.y0}:{self.y1},{self.x0}:{self.x1}"

    @property
    def height(self) -> int:
        """Rows, px."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Columns, px."""
        return self.x1 - self.x0

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)``, px."""
        return self.height, self.width

    @property
    def origin(self) -> tuple[int, int]:
        """The first pixel, ``(y0, x0)``."""
        return self.y0, self.x0

    @property
    def is_empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.y1 <= self.y0 or self.x1 <= self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the region in the array of the whole scene."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def slices_within(self, outer: Region) -> tuple[slice, slice]:
        """Return the index of this region in an array that covers `outer`."""
        return self.shift(-outer.y0, -outer.x0).slices

    def shift(self, dy: int, dx: int) -> Region:
        """Return the region moved by ``(dy, dx)`` px."""
        return Region(y0=self.y0 + dy, y1=self.y1 + dy, x0=self.x0 + dx, x1=self.x1 + dx)

    def expand(self, distance: int) -> Region:
        """Return the region grown by `distance` px on each side."""
        return Region(y0=self.y0 - distance, y1=self.y1 + distance, x0=self.x0 - distance, x1=self.x1 + distance)

    def intersect(self, other: Region) -> Region:
        """Return the common part; empty (but never inverted) if there is none."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        return Region(y0=y0, y1=max(y0, min(self.y1, other.y1)), x0=x0, x1=max(x0, min(self.x1, other.x1)))

    def contains(self, other: Region) -> bool:
        """Whether every pixel of `other` is also in this region."""
        return self.y0 <= other.y0 and other.y1 <= self.y1 and self.x0 <= other.x0 and other.x1 <= self.x1


@dataclass(frozen=True, slots=True, order=True)
class TileId:
    """Row and column of a tile in its grid."""

    row: int
    col: int

    def __str__(self) -> str:
        return f"({self.row}, {self.col})"

    @property
    def color(self) -> int:
        """Which of the four colours of a sweep the tile has: ``2 (row % 2) + col % 2``."""
        return 2 * (self.row % 2) + self.col % 2


def phase_of(tile: TileId, sweep: int) -> int:
    """Return the phase in which `tile` is optimised in `sweep`: ``4 sweep + color``.

    Examples
    --------
    >>> phase_of(TileId(1, 2), sweep=3)
    14
    """
    return PHASES_PER_SWEEP * sweep + tile.color


def input_sweep(tile: TileId, neighbor: TileId, *, sweep: int) -> int:
    """Return the sweep whose state of `neighbor` a job of (`tile`, `sweep`) reads.

    Colours before the tile's own have been through this sweep already; itself and the later ones have not. The
    answer depends on nothing that ran, so a resumed job reads what the first attempt read.

    Examples
    --------
    >>> input_sweep(TileId(0, 1), TileId(0, 0), sweep=2), input_sweep(TileId(0, 0), TileId(0, 1), sweep=2)
    (2, 1)
    """
    return sweep if neighbor.color < tile.color else sweep - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """A scene cut into square tiles; the last row and column may be smaller.

    Parameters
    ----------
    height, width
        Scene size, px.
    tile
        Side of a tile's core, px.
    halo
        Width of the context around a core that takes part in its optimisation, px.

    Raises
    ------
    ConfigError
        If ``halo + reach > tile``: Gaussians of two tiles of one phase could then meet.

    Examples
    --------
    >>> grid = TileGrid(height=1000, width=600, tile=512, halo=64)
    >>> grid.shape, grid.core(TileId(1, 1))
    ((2, 2), Region(y0=512, y1=1000, x0=512, x1=600))
    """

    height: int
    width: int
    tile: int = 512
    halo: int = 64

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"a scene of {self.height} x {self.width} px has no pixels")
        if self.tile < 1 or self.halo < 0:
            raise ConfigError(f"tile {self.tile} and halo {self.halo}: tile must be positive, halo not negative")
        if self.halo > self.tile:
            raise ConfigError(f"halo {self.halo} is larger than tile {self.tile}; use --halo {largest_halo(self.tile)}")
        if self.halo + self.reach > self.tile:
            raise ConfigError(
                f"halo {self.halo} lets footprints reach {self.reach} px, and halo + reach = "
                f"{self.halo + self.reach} exceeds tile {self.tile}; use --halo {largest_halo(self.tile)} or less, "
                f"or --tile {self.halo + self.reach} or more"
            )

    @property
    def reach(self) -> int:
        """How far a footprint may extend beyond its mean, px."""
        return REACH_IN_HALOS * self.halo

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-self.height // self.tile)

    @property
    def cols(self) -> int:
        """Columns of tiles."""
        return -(-self.width // self.tile)

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, cols)``."""
        return self.rows, self.cols

    @property
    def bounds(self) -> Region:
        """The whole scene."""
        return Region(y0=0, y1=self.height, x0=0, x1=self.width)

    def __len__(self) -> int:
        return self.rows * self.cols

    def __iter__(self) -> Iterator[TileId]:
        return (TileId(row, col) for row in range(self.rows) for col in range(self.cols))

    def core(self, tile: TileId) -> Region:
        """Return the pixels `tile` owns; the cores of a grid partition the scene."""
        y0, x0 = tile.row * self.tile, tile.col * self.tile
        return Region(y0=y0, y1=min(y0 + self.tile, self.height), x0=x0, x1=min(x0 + self.tile, self.width))

    def padded(self, tile: TileId) -> Region:
        """Return the core and its halo, cut at the edge of the scene."""
        return self.core(tile).expand(self.halo).intersect(self.bounds)

    def neighbors(self, tile: TileId) -> tuple[TileId, ...]:
        """Return the up to 8 tiles around `tile`, row by row."""
        return tuple(
            TileId(row, col)
            for row in range(max(0, tile.row - 1), min(self.rows, tile.row + 2))
            for col in range(max(0, tile.col - 1), min(self.cols, tile.col + 2))
            if (row, col) != (tile.row, tile.col)
        )

    def of_color(self, color: int) -> tuple[TileId, ...]:
        """Return the tiles of one colour, row by row."""
        return tuple(tile for tile in self if tile.color == color)

    def within(self, region: Region) -> tuple[TileId, ...]:
        """Return the tiles whose core meets `region`, row by row."""
        region = region.intersect(self.bounds)
        if region.is_empty:
            return ()
        rows = range(region.y0 // self.tile, -(-region.y1 // self.tile))
        cols = range(region.x0 // self.tile, -(-region.x1 // self.tile))
        return tuple(TileId(row, col) for row in rows for col in cols)


def block_grid(grid: TileGrid, factor: int) -> TileGrid:
    """Return the grid of blocks of ``factor x factor`` tiles that a pass at level `factor` visits one by one.

    In pixels of the level a block, its halo and its reach are what a tile's are in px of the scene.

    Examples
    --------
    >>> block_grid(TileGrid(height=1000, width=600, tile=128, halo=16), 4).shape
    (2, 2)
    """
    return TileGrid(height=grid.height, width=grid.width, tile=grid.tile * factor, halo=grid.halo * factor)


def colors_of(grid: TileGrid) -> list[int]:
    """Return the colours that any tile of the grid has: a small grid lacks some, and so some phases.

    Examples
    --------
    >>> colors_of(TileGrid(height=100, width=600, tile=512, halo=64))
    [0, 1]
    """
    return sorted({tile.color for tile in grid})


def largest_halo(tile: int) -> int:
    """Return the widest halo that `tile` admits, px.

    Examples
    --------
    >>> largest_halo(512)
    102
    """
    return tile // (REACH_IN_HALOS + 1)


def default_halo(tile: int) -> int:
    """Return the usual halo for `tile`, px: an eighth of it, 64 at the most (wider was measured to gain nothing).

    Examples
    --------
    >>> default_halo(512), default_halo(256)
    (64, 32)
    """
    return min(64, tile // 8)
