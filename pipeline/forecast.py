"""How much work each part of a run is, from the plan alone, and so how long what is left will take. Pure.

The unit of work is the *pair-pixel*: one pair of the optimiser over one pixel of its level. A fit costs its pairs,
color iterations or Adam steps, and `_VISIT` for what comes with them, at each pixel of its level. The other stages go
with the pixels or with the Gaussians, by factors measured on photos at ratio 50. So all parts share one pace, and the
first minutes tell how long the rest takes, to within a third or so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.optimize import SETTLE, SETTLING, phase_name, stage_name
from smartsplat.geometry import TileGrid, TileId, block_grid
from smartsplat.schedule import FitPass, InsertPass

_VISIT = 2.0  # pairs that reading, measuring and writing a tile are worth
_INGEST, _SURVEY, _SAMPLE, _INSERT, _EVALUATE = 0.3, 0.9, 1.3, 0.1, 1.5  # pairs over each pixel
_RATE, _COLOR_RATE, _ENCODE = 150.0, 100.0, 15.0  # pair-pixels for each Gaussian

EVALUATE = "evaluate"
"""Name of the one stage that keeps no ledger: a resumed run does all of it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Jobs that run together: those of a stage, or of one of its phases.

    Parameters
    ----------
    stage
        Its name.
    color
        Of the phase; None if the stage has none.
    pixels
        Of the scene, that the jobs cover together.
    work
        Pair-pixels.
    """

    stage: str
    color: int | None = None
    pixels: int
    work: float

    @property
    def name(self) -> str:
        """What the part is called while it runs."""
        return self.stage if self.color is None else phase_name(self.stage, self.color)


def run_parts(passes: Sequence[FitPass | InsertPass], grid: TileGrid, *, count: int, rated: bool) -> list[Part]:
    """Return the parts of a whole run, in order.

    Parameters
    ----------
    passes
        Of the fit.
    grid, count
        The scene's tiles and Gaussians.
    rated
        Whether a byte budget is kept, for which tiles are measured.

    Examples
    --------
    >>> grid = TileGrid(height=100, width=200, tile=100, halo=10)
    >>> [(part.name, round(part.work)) for part in run_parts([FitPass(pairs=8)], grid, count=10, rated=False)]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('ingest', 6000), ('survey', 18000), ('sample', 26000), ('fit 1 of 1, 8 pairs, phase 1', 100000),
     ('fit 1 of 1, 8 pairs, phase 2', 100000), ('settle, phase 1', 220000), ('settle, phase 2', 220000),
     ('encode', 150), ('evaluate', 30000)]
    """
    pixels = grid.height * grid.width
    parts = [_whole(name, pixels, each) for name, each in (("ingest", _INGEST), ("survey", _SURVEY))]
    parts.append(_whole("sample", pixels, _SAMPLE))
    for sweep, each in enumerate(passes, start=1):
        name = stage_name(sweep, passes)
        parts += [_whole(name, pixels, _INSERT)] if isinstance(each, InsertPass) else _phases(name, grid, each)
    rates = [Part(stage="rate", pixels=pixels, work=_RATE * count)] * rated
    rates_of_colors = [Part(stage="rate of colors", pixels=pixels, work=_COLOR_RATE * count)] * rated
    encode = Part(stage="encode", pixels=pixels, work=_ENCODE * count)
    return [
        *parts,
        *rates,
        *_phases(SETTLE, grid, SETTLING),
        *rates_of_colors,
        encode,
        _whole(EVALUATE, pixels, _EVALUATE),
    ]


def seconds_left(*, total: float, done: float, done_now: float, seconds: float) -> float | None:
    """Return how long the rest takes at this run's pace, s: ``(total - done) seconds / done_now``.

    Parameters
    ----------
    total, done
        Work of all parts, and what is done of it by this run and those before it.
    done_now, seconds
        What this run has done, and in what time; None is returned as long as it has done nothing.

    Examples
    --------
    >>> seconds_left(total=100, done=40, done_now=20, seconds=10)
    30.0
    """
    return None if done_now <= 0 else max(0.0, total - done) * seconds / done_now


def _whole(name: str, pixels: int, pairs: float) -> Part:
    return Part(stage=name, pixels=pixels, work=pairs * pixels)


def _phases(name: str, grid: TileGrid, work: FitPass) -> list[Part]:
    pairs = _VISIT + work.color_iterations + work.pairs + work.ssim_pairs + work.adam_steps
    return [
        Part(stage=name, color=color, pixels=pixels, work=pairs * pixels / work.factor**2)
        for color, pixels in _pixels_by_color(block_grid(grid, work.factor)).items()
    ]


def _pixels_by_color(blocks: TileGrid) -> dict[int, int]:
    """Return the pixels of the blocks of each colour that there is."""
    heights = [sum(blocks.core(TileId(row, 0)).height for row in range(parity, blocks.rows, 2)) for parity in (0, 1)]
    widths = [sum(blocks.core(TileId(0, col)).width for col in range(parity, blocks.cols, 2)) for parity in (0, 1)]
    return {color: area for color in range(4) if (area := heights[color // 2] * widths[color % 2])}
