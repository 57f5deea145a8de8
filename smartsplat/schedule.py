"""What a fit does, pass by pass: worked out from the settings alone, before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smartsplat.config import LEVEL_FACTORS, FitConfig

_LEAST_LEVEL_SCALE = 0.4
"""Base scale, px, over the level's factor squared, below which the level shows too little of what Gaussians can."""

_SPARSE_SCALE = 3.0
"""Base scale, px, above which Gaussians are replaced twice as often: each of so few counts for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPass:
    """One visit to every tile: a color solve, Levenberg-Marquardt without and with SSIM, Adam, each if it is asked for.

    Parameters
    ----------
    factor
        Of the level: its pixels are squares of that many px.
    color_iterations
        Conjugate-gradient iterations for the colors alone.
    pairs, damping
        See `smartsplat.optim.lm.levenberg_marquardt`.
    ssim_pairs, ssim_gain
        Pairs after those that also raise SSIM: .01 more of it is taken for as good as ``ssim_gain`` % less squared
        error.
    adam_steps
        See `smartsplat.optim.adam.adam`.
    least_scale
        Px: Gaussians whose larger scale is below are held fixed.
    fixed_means
        Whether means stay where they are in the first pairs.
    """

    factor: int = 1
    color_iterations: int = 0
    pairs: int = 0
    damping: float = 0.1
    ssim_pairs: int = 0
    ssim_gain: float = 0.0
    adam_steps: int = 0
    least_scale: float = 0.0
    fixed_means: bool = False

    @property
    def does_something(self) -> bool:
        """Whether a visit changes anything."""
        return bool(self.color_iterations or self.pairs or self.ssim_pairs or self.adam_steps)

    def __str__(self) -> str:
        pairs = self.pairs + self.ssim_pairs
        what = [f"{pairs} pairs"] * (pairs > 0) + [f"{self.adam_steps} Adam steps"] * (self.adam_steps > 0)
        where = f" at 1/{self.factor}" if self.factor > 1 else ""
        return (", ".join(what) or "colors") + where


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertPass:
    """Gaussians are added where the residual is largest, after the weakest were dropped.

    Parameters
    ----------
    factor
        Of the level that the residual is taken at.
    count
        Gaussians of the scene afterwards; if there are more already, the weakest are dropped.
    scale
        Of the new ones, px.
    dropped_share
        Of those there are, how many are dropped first.
    """

    factor: int
    count: int
    scale: float
    dropped_share: float = 0.0

    def __str__(self) -> str:
        return f"insert, {self.count} Gaussians"


def start_count(config: FitConfig, count: int) -> int:
    """Return how many of `count` Gaussians are sampled; the others are inserted later."""
    return count if config.stages == 0 else min(count, max(1, round(config.start_fraction * count)))


def schedule(
    config: FitConfig, *, count: int, base_scale: float, rounds: Sequence[int] = ()
) -> list[FitPass | InsertPass]:
    """Return the passes of a fit, in order.

    Parameters
    ----------
    count, base_scale
        Of the scene (see `smartsplat.budget.base_scale`).
    rounds
        Gaussians after each round that is added to the fit: a look at where they are needed and where not, an
        insertion that leaves so many, and the last passes once more.

    Notes
    -----
    Colors are solved first. Each *stage* moves everything at a coarse level and then inserts. At full resolution all
    are refined, those of least effect replaced, and all refined again. Coarser passes, for the large Gaussians alone,
    may come before each sweep. A level whose pixels are nearly as large as the Gaussians is left out: there is nothing
    to be seen at it.

    Examples
    --------
    >>> config = FitConfig(start_fraction=0.2, color_sweeps=1, stages=2, stage_pairs=20, replacements=0)
    >>> [str(each) for each in schedule(config, count=1000, base_scale=2.0)]
    ... # doctest: +NORMALIZE_WHITESPACE
    ['colors at 1/2', '20 pairs at 1/2', 'insert, 600 Gaussians', '20 pairs at 1/2', 'insert, 1000 Gaussians',
     '60 pairs']
    """
    now = start_count(config, count)
    factor = _stage_factor(config, base_scale * math.sqrt(count / now))
    passes: list[FitPass | InsertPass] = [
        FitPass(factor=factor, color_iterations=config.color_iterations) for _ in range(config.color_sweeps)
    ]
    for stage in range(config.stages):
        factor = _stage_factor(config, base_scale * math.sqrt(count / now))
        passes += _coarse(config)
        passes.append(FitPass(factor=factor, pairs=config.stage_pairs))
        now += math.ceil((count - now) / (config.stages - stage))
        passes.append(InsertPass(factor=factor, count=now, scale=_insert_scale(config, base_scale, factor)))
    for _ in range(config.replacements * (2 if base_scale > _SPARSE_SCALE else 1)):
        passes.append(FitPass(pairs=config.stage_pairs))
        scale = _insert_scale(config, base_scale, 1)
        passes.append(InsertPass(factor=1, count=count, scale=scale, dropped_share=config.replaced_share))
    passes += _last_passes(config)
    for wanted in rounds:
        scale = _insert_scale(config, base_scale, 1)
        passes += [FitPass(pairs=config.stage_pairs), InsertPass(factor=1, count=wanted, scale=scale)]
        passes += _last_passes(config)
    # A visit that changes nothing may still be needed for what it leaves to an insertion.
    return [
        each
        for each, following in zip(passes, [*passes[1:], None], strict=False)
        if isinstance(each, InsertPass) or each.does_something or isinstance(following, InsertPass)
    ]


def _last_passes(config: FitConfig) -> list[FitPass | InsertPass]:
    """Return the passes at full resolution that a fit ends with."""
    passes: list[FitPass | InsertPass] = []
    for sweep, pairs in enumerate(config.final_pairs):
        passes += _coarse(config)
        last = sweep == len(config.final_pairs) - 1
        passes.append(
            FitPass(
                pairs=pairs,
                damping=0.1 if sweep == 0 else 0.05,
                ssim_pairs=config.ssim_pairs if last else 0,
                ssim_gain=config.ssim_gain,
            )
        )
    if config.adam_steps:
        passes.append(FitPass(adam_steps=config.adam_steps))
    return passes


def _stage_factor(config: FitConfig, base_scale: float) -> int:
    """Return the coarsest level allowed that can tell Gaussians of this scale apart."""
    allowed = [factor for factor in LEVEL_FACTORS if factor <= config.stage_factor]
    return max((factor for factor in allowed if base_scale >= _LEAST_LEVEL_SCALE * factor**2), default=1)


def _insert_scale(config: FitConfig, base_scale: float, factor: int) -> float:
    """Return the scale of inserted Gaussians, px: at least a pixel of the level."""
    return max(float(factor), config.insert_scale * base_scale)


def _coarse(config: FitConfig) -> list[FitPass]:
    return [
        FitPass(factor=factor, pairs=config.coarse_pairs, least_scale=float(factor)) for factor in config.coarse_factors
    ]
