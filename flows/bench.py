"""``smartsplat bench``: what the method's parts are worth, what the presets come to, how fast the engine is."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows.engine_scene import PAIRS_A_PIXEL, engine_scene
from flows.plots import new_figure
from flows.settings import scene_config
from pipeline.executors import keep_freed_memory
from pipeline.plan import Resources
from pipeline.progress import Progress
from pipeline.trial import Trial, run_trial
from smartsplat.budget import gaussian_count
from smartsplat.config import SceneConfig
from storage.source import read_info

_REPEATS = 9
_STAGES_PAIRS = 40  # what the stages' pairs come to at full resolution
_WARM_UP_GAUSSIANS = 50
_ADAM_STEPS = 300  # about as long as the pairs of `standard` take


def ablation(
    source: Path, *, count: int, resources: Resources, seed: int = 0, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Return what `standard` comes to with each of its parts switched off, and with all of them.

    Each row has ``variant``, ``psnr``, ``ssim``, ``ms_ssim``, ``seconds`` and ``trace`` (seconds and PSNR after each
    sweep).
    """
    rows: list[dict[str, Any]] = []
    # A process's first fit loads libraries and compiled code too: one goes before that is not counted.
    warm_up = scene_config("draft", gaussians=min(count, _WARM_UP_GAUSSIANS), seed=seed)
    run_trial(source, warm_up, resources=resources, progress=progress)
    for variant, config in _variants(scene_config("standard", gaussians=count, seed=seed)).items():
        trial = run_trial(source, config, resources=resources, traced=True, progress=progress)
        rows.append({"variant": variant, **_values(trial), "trace": [list(point) for point in trial.trace]})
    return rows


def _variants(base: SceneConfig) -> dict[str, SceneConfig]:
    def but(fit: dict[str, Any] | None = None, **sampling: Any) -> SceneConfig:
        return dataclasses.replace(
            base,
            sampling=dataclasses.replace(base.sampling, **sampling),
            fit=dataclasses.replace(base.fit, **(fit or {})),
        )

    at_once: dict[str, Any] = {"stages": 0, "final_pairs": (sum(base.fit.final_pairs) + _STAGES_PAIRS,)}
    by_adam: dict[str, Any] = {"stages": 0, "replacements": 0, "final_pairs": (), "adam_steps": _ADAM_STEPS}
    return {
        "all parts": base,
        "positions: uniform": but(variational_fraction=0.0),
        "scales: all alike": but(adaptive_scales=False),
        "colors: one pixel's, not solved": but({"color_sweeps": 0}, median_colors=False),
        "insertion: all from the start": but(at_once),
        "insertion: errors alike everywhere": but({"insert_visibility": 0.0}),
        "levels: full resolution only": but({"stage_factor": 1}),
        "levels: with coarse passes": but({"coarse_factors": (8, 4)}),
        "replacement: none": but({"replacements": 0}),
        "similarity: left to itself": but(
            {"final_pairs": (base.fit.final_pairs[0] + base.fit.ssim_pairs,), "ssim_pairs": 0}
        ),
        "optimiser: Adam, all from the start": but(by_adam),
        "none of them": but(by_adam | {"color_sweeps": 0}, variational_fraction=0.0, adaptive_scales=False),
    }


def quality(
    sources: Sequence[Path],
    *,
    counts: Sequence[int],
    ratios: Sequence[float],
    presets: Sequence[str],
    resources: Resources,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield what each preset comes to on each image, for each number of Gaussians, as soon as it is known.

    A ratio stands for the published number of Gaussians at it, ``3 H W / (7 ratio)``. Nothing is quantised.
    """
    for source in sources:
        info = read_info(source)
        wanted = [(None, count) for count in counts]
        wanted += [(ratio, gaussian_count(info.height, info.width, ratio)) for ratio in ratios]
        for ratio, count in wanted:
            for preset in presets:
                config = scene_config(preset, gaussians=count, seed=seed)
                trial = run_trial(source, config, resources=resources, progress=progress)
                yield {"image": source.name, "preset": preset, "ratio": ratio, **_values(trial)}


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over the images for each preset at each ratio or count.

    Examples
    --------
    >>> row = {"image": "a", "preset": "best", "ratio": 50.0, "gaussians": 9, "psnr": 30.0, "ssim": 0.9}
    >>> row |= {"ms_ssim": None, "seconds": 2.0, "seconds_per_megapixel": 4.0}
    >>> summary([row, row | {"psnr": 32.0}])[0]["psnr"]
    31.0
    """
    groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["preset"], row["ratio"] or row["gaussians"]), []).append(row)
    found: list[dict[str, Any]] = []
    for (preset, _), members in groups.items():
        means: dict[str, Any] = {
            name: known_mean([row[name] for row in members])
            for name in ("psnr", "ssim", "ms_ssim", "seconds", "seconds_per_megapixel")
        }
        ratio, images = members[0]["ratio"], len(members)
        label = f"ratio {ratio:g}" if ratio else f"{members[0]['gaussians']} Gaussians"
        found.append({"preset": preset, "at": label, "images": images, **means})
    return found


def engine(sides: Sequence[int] = (1024, 4096)) -> list[dict[str, Any]]:
    """Return the median cost of each operator of the CPU engine, by size of image and number of threads.

    Each row has ``side``, ``threads``, ``operator``, ``ms_per_megapixel`` and ``ns_per_pair``, a pair being a Gaussian
    and a pixel of its footprint. The sizes take turns, so that none finds its pixels in the cache.
    """
    import numba

    keep_freed_memory()
    most = numba.get_num_threads()
    calls = {(side, operator): call for side in sides for operator, call in _operator_calls(side).items()}
    rows: list[dict[str, Any]] = []
    for threads in sorted({1, most}):
        numba.set_num_threads(threads)
        for (side, operator), seconds in zip(calls, median_seconds(list(calls.values())), strict=True):
            rows.append(
                {
                    "side": side,
                    "threads": threads,
                    "operator": operator,
                    "ms_per_megapixel": 1e9 * seconds / side**2,
                    "ns_per_pair": 1e9 * seconds / (PAIRS_A_PIXEL * side**2),
                }
            )
    return rows


def _operator_calls(side: int) -> dict[str, Callable[[], object]]:
    from smartsplat.render.cpu import operators

    gaussians, region = engine_scene(side)
    at = operators(gaussians, region)
    planes, target = (at.new_planes(gaussians.bands) for _ in range(2))
    at.draw(target)
    step = np.ones((len(gaussians), 5 + gaussians.bands))
    return {
        "prepare": lambda: operators(gaussians, region),
        "render": lambda: at.draw(planes),
        "jvp": lambda: at.draw_change(planes, step),
        "vjp": lambda: at.gather(target),
    }


def median_seconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median time of each call; they take turns, after one turn that is not counted."""
    seconds = np.empty((1 + _REPEATS, len(calls)))
    for turn in seconds:
        for index, call in enumerate(calls):
            started = time.perf_counter()
            call()
            turn[index] = time.perf_counter() - started
    return np.median(seconds[1:], axis=0).tolist()


def write_json(path: Path, values: Any) -> None:
    """Write a result."""
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")


def plot_ablation(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a picture of PSNR over time, a line for each variant."""
    figure, axes = _figure(xlabel="seconds", ylabel="PSNR, dB")
    for row in rows:
        seconds, psnr = zip(*row["trace"], strict=True)
        axes.plot(seconds, psnr, label=f"{row['variant']} ({row['psnr']:.2f} dB)")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def plot_quality(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a picture of PSNR over Gaussians a pixel, a line for each preset and image."""
    figure, axes = _figure(xlabel="Gaussians per 1000 px", ylabel="PSNR, dB")
    axes.set_xscale("log")
    presets = list(dict.fromkeys(row["preset"] for row in rows))
    for index, preset in enumerate(presets):
        for number, image in enumerate(dict.fromkeys(row["image"] for row in rows)):
            chosen = [row for row in rows if (row["preset"], row["image"]) == (preset, image)]
            chosen.sort(key=lambda row: row["gaussians"])
            density = [row["gaussians"] / (1e3 * row["megapixels"]) for row in chosen]
            label = preset if number == 0 else None
            axes.plot(density, [row["psnr"] for row in chosen], "o-", color=f"C{index}", alpha=0.6, label=label)
    axes.legend()
    figure.savefig(path, dpi=120)


def _figure(*, xlabel: str, ylabel: str) -> tuple[Any, Any]:
    figure = new_figure(figsize=(9, 6))
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _values(trial: Trial) -> dict[str, Any]:
    return {
        "gaussians": trial.gaussians,
        "megapixels": trial.megapixels,
        **trial.quality,
        "seconds": trial.seconds,
        "seconds_per_megapixel": trial.seconds / trial.megapixels,
    }


def known_mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of those values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
