"""What the CUDA engine comes to on the device at hand: is it right, how fast, and how far from what the device can do.

Needs torch, Triton, numpy and numba; whole scenes need all that the project does. Each part stands by itself: one that
fails prints its error, and the others go on.

python -m tests.benchmarks.gpu [--output FOLDER] [--sides 1024 2048 4096] [--scene 8192] [--commit NAME]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "0")  # before Triton is loaded; 1 to try this script without a device

import numpy as np
import torch
import triton
from torch import Tensor

from flows.engine_scene import PAIRS_A_PIXEL, engine_scene
from smartsplat.config import FitConfig
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.optim import Target, fit_tiles
from smartsplat.optim.device import DeviceMachine
from smartsplat.optim.lm import levenberg_marquardt
from smartsplat.optim.machine import Bounds
from smartsplat.render import reference
from smartsplat.render.coordinates import frames_of
from smartsplat.render.device import DEFAULT_TUNING, DeviceOperators, Tuning, device_operators, engine_device
from smartsplat.render.footprint import half_extents
from smartsplat.render.kernels import INTERPRETED
from smartsplat.schedule import FitPass
from tests.conftest import FAMILIES, make_gaussians

PUBLISHED = 885  # MP x steps/s of SmartSplat, L1 + SSIM, on an A800
TOLERANCE = 1e-4  # of the largest value, as in the tests

_SECONDS = 0.2  # to spend on a timing, at most
_MOST_REPEATS = 50
_STEPS = 20
_WINDOW = 48  # px: side of what is compared with the dense engine in a large image
_SHAPES = [(16, 16, 2), (16, 32, 2), (8, 16, 1), (8, 32, 1), (32, 16, 1), (8, 8, 1)]  # rows, columns, warps of a bin
_WINDOWS = (640, 2048, 4096)  # px: sides of what a visit works on, of a tile of 512 with its halo and of large ones
_PAIRS = 40  # of a visit
_SCENE_SECONDS = 110  # for a whole scene, at most

Row = dict[str, Any]


def main() -> None:
    """Run all parts, print what they found, a table last, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder for gpu.json")
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--windows", type=int, nargs="+", default=_WINDOWS)
    parser.add_argument("--scene", type=int, help="side of a scene to compress as well, px")
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    arguments = parser.parse_args()
    if not (INTERPRETED or torch.cuda.is_available()):
        parser.error(f"torch {torch.__version__} finds no CUDA device (TRITON_INTERPRET=1 tries the script without)")
    found: dict[str, Any] = {"machine": machine(arguments.commit), "failed": []}
    print(json.dumps(found["machine"]), flush=True)
    tuning = DEFAULT_TUNING

    def run(name: str, part: Callable[[], Any]) -> None:
        started = time.perf_counter()
        try:
            found[name] = part()
        except Exception:
            found["failed"].append(name)
            print(f"--- {name} failed\n{traceback.format_exc()}", flush=True)
        print(f"--- {name}: {time.perf_counter() - started:.1f} s", flush=True)
        if arguments.output:
            arguments.output.mkdir(parents=True, exist_ok=True)
            (arguments.output / "gpu.json").write_text(json.dumps(found, indent=1, default=str) + "\n")

    run("correct", lambda: correctness(arguments.sides[0]))
    run("ceilings", ceilings)
    run("tuning", lambda: tunings(arguments.sides[min(1, len(arguments.sides) - 1)]))
    if found.get("tuning"):
        tuning = best_tuning(found["tuning"])
    found["best tuning"] = asdict(tuning)
    for side in arguments.sides:
        run(f"operators {side}", lambda side=side: operator_times(side, tuning))
    run("large Gaussians", lambda: operator_times(arguments.sides[0], tuning, large=True))
    for side in arguments.sides:
        run(f"steps {side}", lambda side=side: step_times(side, tuning))
    run("profile", lambda: profile(arguments.sides[0], tuning))
    for side in arguments.windows:
        run(f"pairs {side}", lambda side=side: pair_times(side))
    run("cpu engine", lambda: against_cpu_engine(arguments.sides[0]))
    for side in arguments.windows:
        run(f"visit {side}", lambda side=side: visit_times(side))
    if arguments.scene:
        for tile in (2048, 512):
            run(f"scene, tile {tile}", lambda tile=tile: scene_times(arguments.scene, tile))
    print_summary(found)


def machine(commit: str | None) -> Row:
    """Return device, versions and commit."""
    if commit is None:
        asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        commit = asked.stdout.strip() or "unknown"
    row: Row = {"torch": torch.__version__, "triton": triton.__version__, "commit": commit}
    if INTERPRETED:
        return row | {"device": "none: Triton's interpreter"}
    card = torch.cuda.get_device_properties(0)
    return row | {
        "device": card.name,
        "multiprocessors": card.multi_processor_count,
        "memory": card.total_memory,
        "cuda": torch.version.cuda,
    }


# ---- is it right ----


def correctness(side: int) -> list[Row]:
    """Return, for each comparison with the dense engine, the largest difference over the largest value."""
    rows: list[Row] = []
    for seed, family in enumerate(FAMILIES):
        gaussians = make_gaussians(seed, 25, family=family, bands=(1, 3, 4, 8)[seed % 4], shape=(70, 53))
        rows += compared(family, gaussians, Region(y0=0, y1=70, x0=0, x1=53))
    gaussians, _ = engine_scene(side)
    rng = np.random.default_rng(0)
    for _ in range(2):
        y0, x0 = rng.integers(0, max(1, side - _WINDOW), 2)
        window = Region(y0=int(y0), y1=int(y0) + _WINDOW, x0=int(x0), x1=int(x0) + _WINDOW)
        reach = half_extents(gaussians)
        meets = (np.abs(gaussians.means - (window.origin + np.full(2, _WINDOW / 2))) < reach + _WINDOW / 2).all(axis=1)
        rows += compared(f"window of {side} px", gaussians.select(meets), window)
    rows.append(same_bits(gaussians, side))
    for row in rows:
        row["right"] = bool(row["error"] <= TOLERANCE)
    bad = [row for row in rows if not row["right"]]
    print(f"{len(rows)} comparisons, worst {max(row['error'] for row in rows):.1e}, {len(bad)} wrong", *bad, sep="\n")
    return rows


def compared(name: str, gaussians: Gaussians, region: Region) -> list[Row]:
    """Return the errors of image, derivative and gradient; pixels on a footprint's very edge do not count."""
    rng, count = np.random.default_rng(1), len(gaussians)
    at = operators_of(gaussians, region)
    frames = frames_of(gaussians.scales.astype(np.float64), gaussians.rotations.astype(np.float64))
    tangent = rng.normal(size=(count, 5 + gaussians.bands))
    clear = clear_pixels(gaussians, region)
    cotangent = rng.normal(size=(*region.shape, gaussians.bands)) * clear[..., None]
    image, change = at.new_planes(gaussians.bands), at.new_planes(gaussians.bands)
    at.draw(image.fill_(math.nan))
    at.draw_change(change.fill_(math.nan), to_device(frames.whitened(tangent.astype(np.float32))))
    planes = to_device(np.moveaxis(cotangent, 2, 0))
    rows_of = {
        "image": (to_pixels(image)[clear], reference.render(gaussians, region)[clear]),
        "jvp": (to_pixels(change)[clear], reference.jvp(gaussians, region, tangent=tangent)[clear]),
    }
    gradient = reference.vjp(gaussians, region, cotangent=cotangent)
    rows_of["vjp"] = (frames.to_rows(at.gather(planes).cpu().numpy()), gradient)
    return [{"on": name, "what": kind, "error": error(*values)} for kind, values in rows_of.items()]


def same_bits(gaussians: Gaussians, side: int) -> Row:
    """Return whether a second run gives the same bits (0) or not (1)."""
    at = operators_of(gaussians, Region(y0=0, y1=side, x0=0, x1=side))
    runs: list[list[Tensor]] = []
    for _ in range(2):
        image = at.new_planes(3)
        at.draw(image)
        runs.append([image, at.gather(image)])
    same = all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    return {"on": f"{side} px", "what": "two runs", "error": float(not same)}


def against_cpu_engine(side: int) -> Row:
    """Return how far image and gradients are from the CPU engine's at full size."""
    from smartsplat.render import cpu

    gaussians, region = engine_scene(side)
    ours, theirs = operators_of(gaussians, region), cpu.operators(gaussians, region)
    planes, drawn = theirs.new_planes(3), ours.new_planes(3)
    theirs.draw(planes)
    ours.draw(drawn)
    image = cpu.to_image(planes)
    apart = np.abs(to_pixels(drawn) - image)
    moments = theirs.gather(planes)
    found = ours.gather(to_device(np.moveaxis(image, 2, 0))).cpu().numpy()
    row = {
        # Pixels on a footprint's very edge may fall to either side.
        "pixels apart by more than 1e-4": float((apart.max(axis=2) > TOLERANCE).mean()),
        "image": float(apart.max()),
        "moments": error(found, moments),
    }
    print(row)
    return row


def clear_pixels(gaussians: Gaussians, region: Region) -> np.ndarray:
    """Return ``(H, W)``: pixels that are on no footprint's very edge, by changing all scales a little."""
    images = []
    for factor in (1 - 1e-4, 1 + 1e-4):
        rows = gaussians.to_rows()
        rows[:, 2:4] *= factor
        rows[:, 5:] = 1.0
        ones = Gaussians.from_rows(rows[:, :6], origin=gaussians.origin)
        images.append(reference.render(ones, region)[..., 0])
    # A Gaussian more at an edge is 1/255 more; anything else changes by less than a thousandth of it.
    return np.abs(images[0] - images[1]) < 1e-3


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference over the largest expected value; infinite if anything is not finite."""
    if not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30))


# ---- how fast ----


def ceilings() -> Row:
    """Return what the device reaches on plain work: float32 products (no tensor cores) and copies."""
    if INTERPRETED:
        return {}
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = (torch.randn(8192, 8192, device="cuda") for _ in range(2))
    flops = 2 * 8192**3 / seconds(lambda: a @ b)
    big = torch.randn(2**29, device="cuda")
    other = torch.empty_like(big)
    bandwidth = 2 * 4 * 2**29 / seconds(lambda: other.copy_(big))
    row = {"float32 TFLOP/s": flops / 1e12, "copy TB/s": bandwidth / 1e12}
    print(row)
    return row


def tunings(side: int) -> list[Row]:
    """Return the time of each kernel by how the work is cut up, ns per pair."""
    gaussians, region = engine_scene(side)
    pairs = PAIRS_A_PIXEL * side * side
    plain = operators_of(gaussians, region)
    planes, step = plain.new_planes(3).normal_(), torch.randn((len(gaussians), 8), device=plain.colors.device)
    drawn, rows = plain.new_planes(3), []
    calls: dict[str, Callable[[DeviceOperators], object]] = {
        "render": lambda at: at.draw(drawn),
        "jvp": lambda at: at.draw_change(drawn, step),
        "vjp": lambda at: at.gather(planes),
    }
    for rows_, columns, warps in [(DEFAULT_TUNING.bin_rows, DEFAULT_TUNING.bin_columns, 1), *_SHAPES]:
        size = {"bin_rows": rows_, "bin_columns": columns}
        tuning = replace(DEFAULT_TUNING, **size, draw_warps=warps, gather_warps=warps)
        at = replace(plain, tuning=tuning)
        row: Row = {"tuning": asdict(tuning)}
        for name, call in calls.items():
            try:
                row[name] = 1e9 * kernel_seconds(partial(call, at)) / pairs
            except Exception as problem:
                row[name] = None
                print(size, name, str(problem).splitlines()[:1])
        rows.append(row)
        print(size, warps, {name: row[name] and round(1e3 * row[name], 3) for name in calls}, "ps/pair", flush=True)
    return rows


def best_tuning(rows: list[Row]) -> Tuning:
    """Return the size of bins at which a pair of Levenberg-Marquardt takes least."""
    whole = [row for row in rows if row["jvp"] is not None and row["vjp"] is not None]
    return Tuning(**min(whole, key=lambda row: row["jvp"] + row["vjp"])["tuning"])


def operator_times(side: int, tuning: Tuning, *, large: bool = False) -> list[Row]:
    """Return the time of each operator: ms/MP, and ns per pair."""
    gaussians, region = engine_scene(side)
    if large:
        gaussians = with_large(gaussians)
    pairs = math.pi * (3.329**2) * float(gaussians.scales.astype(np.float64).prod(axis=1).sum())
    rows_tensor = to_device(gaussians.to_rows())
    at = replace(operators_of(gaussians, region), tuning=tuning)
    target, out = at.new_planes(3).normal_(), at.new_planes(3)
    step = torch.randn((len(gaussians), 8), device=out.device)
    weight = torch.rand((side, side), device=out.device)
    narrow = at.narrowed(0.75)
    room = round(1.5 * int(at.bins.entries))
    fresh = lambda **how: replace(prepared(rows_tensor, side), tuning=tuning, **how)  # noqa: E731
    calls: dict[str, Callable[[], object]] = {
        "prepare, wall": lambda: fresh(room=room).bins,
        "prepare, wall, exact room": lambda: fresh().bins,
        "prepare": lambda: fresh(room=room).bins,
        "render": lambda: at.draw(out),
        "render, target": lambda: at.draw(out, target=target),
        "render, target and weight": lambda: at.draw(out, target=target, weight=weight),
        "jvp": lambda: at.draw_change(out, step),
        "vjp": lambda: at.gather(target),
        "jvp, narrowed": lambda: narrow.draw_change(out, step),
        "vjp, narrowed": lambda: narrow.gather(target),
    }
    rows: list[Row] = []
    megapixels = side * side / 1e6
    evaluated = {"render": int(at.bins.entries) * tuning.bin_rows * tuning.bin_columns / pairs}
    for name, call in calls.items():
        took = (wall_seconds if "wall" in name else kernel_seconds)(call)
        rows.append({"operator": name, "ms/MP": 1e3 * took / megapixels, "ps/pair": 1e12 * took / pairs})
        print(
            f"{megapixels:6.2f} MP {name:28s} {1e3 * took / megapixels:9.4f} ms/MP {1e12 * took / pairs:9.3f} ps/pair"
        )
    print(f"evaluated pixels a pair: {evaluated}; bins' longest list {int(at.bins.starts.diff().max())}")
    return [*rows, {"operator": "evaluated pixels a pair", **evaluated}]


def with_large(gaussians: Gaussians) -> Gaussians:
    """Return the scene with one in three hundred Gaussians twelve times as large, as skies have them."""
    rows = gaussians.to_rows()
    rows[::300, 2:4] *= 12
    return Gaussians.from_rows(rows)


def step_times(side: int, tuning: Tuning) -> list[Row]:
    """Return MP x steps/s: of a whole step of gradient descent on L2, and of a pair of Levenberg-Marquardt."""
    gaussians, _ = engine_scene(side)
    state = to_device(gaussians.to_rows())
    first = replace(prepared(state, side), tuning=tuning)
    out, room = first.new_planes(3), round(1.5 * int(first.bins.entries))
    target = torch.rand(out.shape, device=out.device)

    def step() -> None:
        at = replace(prepared(state, side), tuning=tuning, room=room)
        at.draw(out, target=target)
        state[:, 5:].sub_(at.gather(out)[:, 5:], alpha=1e-9)

    at = replace(prepared(state, side), tuning=tuning).narrowed(0.75)
    vector = torch.randn((len(gaussians), 8), device=out.device)

    def pair() -> None:
        at.draw_change(out, vector)
        at.gather(out)

    rows: list[Row] = []
    for name, call in (("L2 step", step), ("pair", pair)):
        for kind, timed in (("", wall_seconds), (", as a CUDA graph", kernel_seconds)):
            rows.append({"what": name + kind, "MP x steps/s": side * side / 1e6 / timed(call)})
    for row in rows:
        print(f"{side * side / 1e6:6.2f} MP {row['what']:24s} {row['MP x steps/s']:10.0f} MP x steps/s")
    return rows


def profile(side: int, tuning: Tuning) -> list[Row]:
    """Return where the time of a step goes, kernel by kernel."""
    if INTERPRETED:
        return []
    gaussians, _ = engine_scene(side)
    state = to_device(gaussians.to_rows())
    first = replace(prepared(state, side), tuning=tuning)
    out, room = first.new_planes(3), round(1.5 * int(first.bins.entries))
    target = torch.rand(out.shape, device=out.device)

    def step() -> None:
        at = replace(prepared(state, side), tuning=tuning, room=room)
        at.draw(out, target=target)
        at.gather(out)

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(5):
            step()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda event: -event.device_time_total)[:14]
    rows = [
        {"kernel": event.key[:60], "us a step": event.device_time_total / 5, "calls a step": event.count / 5}
        for event in events
    ]
    for row in rows:
        print(f"{row['us a step']:9.1f} us {row['calls a step']:5.1f} x {row['kernel']}")
    return rows


# ---- how fast a fit ----


def fit_start(side: int) -> tuple[Gaussians, np.ndarray, Bounds, Region]:
    """Return Gaussians a little off, the pixels of an image they were of, and bounds that leave them free."""
    gaussians, region = engine_scene(side)
    at, rng = operators_of(gaussians, region), np.random.default_rng(1)
    image = at.new_planes(3)
    at.draw(image)
    rows = gaussians.to_rows()
    rows[:, 2:4] *= np.exp(rng.normal(0, 0.1, (len(rows), 2)))
    rows[:, 5:] += rng.normal(0, 0.1, (len(rows), 3))
    bounds = Bounds(
        low=np.zeros((len(rows), 2), np.float32),
        high=np.full((len(rows), 2), side, np.float32),
        min_scale=0.35,
        max_scale=60.0,
    )
    return Gaussians.from_rows(rows.astype(np.float32)), to_pixels(image), bounds, region


def pair_times(side: int) -> Row:
    """Return what Levenberg-Marquardt does on the device, from its upload of Gaussians to their download."""
    own, pixels, bounds, region = fit_start(side)
    machine = DeviceMachine()
    target = machine.to_planes(pixels)
    fits = []

    def fit() -> None:
        fits.append(
            levenberg_marquardt(own, target, region=region, weight=None, bounds=bounds, pairs=_PAIRS, machine=machine)
        )

    took = wall_seconds(fit, repeats=3)
    row = {
        "ms": 1e3 * took,
        "MP x pairs/s": _PAIRS * side * side / 1e6 / took,
        "loss after / before": fits[-1].losses[-1] / fits[-1].losses[0],
        "steps": len(fits[-1].losses) - 1,
        "same bits": all(np.array_equal(fit.gaussians.to_rows(), fits[0].gaussians.to_rows()) for fit in fits),
    }
    if not INTERPRETED:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            fit()
            torch.cuda.synchronize()
        events = sorted(seen.key_averages(), key=lambda event: -event.device_time_total)
        row["device ms"] = sum(event.device_time_total for event in events) / 1e3
        for event in events[:10]:
            print(f"{event.device_time_total / 1e3:9.2f} ms {event.count:5d} x {event.key[:60]}")
    print(f"{side} px, {_PAIRS} pairs: {row}")
    return row


def visit_times(side: int) -> Row:
    """Return the seconds of a whole visit with either engine, pixels on the host before and Gaussians after."""
    own, pixels, bounds, region = fit_start(side)
    target = Target(pixels=pixels, weight=None, core=region, padded=region)
    row: Row = {}
    for kind, work in (
        ("pairs", FitPass(pairs=_PAIRS)),
        ("all", FitPass(color_iterations=5, pairs=_PAIRS, ssim_pairs=20, ssim_gain=2.0)),
    ):
        for engine in ("cuda", "cpu"):
            took: list[float] = []
            # The first is compiled in; on the host a large one is not, as a small one came before.
            for _ in range(1 if engine == "cpu" and side > _WINDOWS[0] else 3):
                started = time.perf_counter()
                done = fit_tiles(
                    target,
                    [own],
                    cores=[region],
                    frozen=[],
                    work=work,
                    config=FitConfig(),
                    max_scale=bounds.max_scale,
                    engine=engine,
                )
                took.append(time.perf_counter() - started)
            row[f"{kind}, {engine}"] = {"s": min(took), "loss": done.report.loss_after}
        row[f"{kind}, times faster"] = row[f"{kind}, cpu"]["s"] / row[f"{kind}, cuda"]["s"]
    print(f"{side} px: {row}; {os.cpu_count()} cores")
    return row


def scene_times(side: int, tile: int) -> Row:
    """Return the seconds of a whole scene, step by step, in a process of its own that may be cut off."""
    command = [sys.executable, "-m", "tests.benchmarks.gpu_scene", "--side", str(side), "--tile", str(tile)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate(timeout=_SCENE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            output += f"cut off after {_SCENE_SECONDS} s\n"
    print(output, end="")
    return {"last": output.strip().splitlines()[-3:]}


# ---- small things ----


def operators_of(gaussians: Gaussians, region: Region) -> DeviceOperators:
    """Return the device's operators of Gaussians over a region."""
    offset = (gaussians.origin[0] - region.y0, gaussians.origin[1] - region.x0)
    return device_operators(to_device(gaussians.to_rows()), offset=offset, height=region.height, width=region.width)


def prepared(rows: Tensor, side: int) -> DeviceOperators:
    """Return the operators of rows on the device over a square."""
    return device_operators(rows, offset=(0, 0), height=side, width=side)


def to_device(values: np.ndarray) -> Tensor:
    """Return an array as a float32 tensor on the device."""
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(engine_device())


def to_pixels(planes: Tensor) -> np.ndarray:
    """Return planes as ``(H, W, C)``."""
    return np.moveaxis(planes.cpu().numpy(), 0, 2)


def kernel_seconds(call: Callable[[], object]) -> float:
    """Return the time of what a call does on the device, launched as one graph: without the host's part."""
    if INTERPRETED:
        return wall_seconds(call)
    call()
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return seconds(graph.replay)


def seconds(call: Callable[[], object]) -> float:
    """Return the median time between two events on the device around a call, after two that are not counted."""
    if INTERPRETED:
        return wall_seconds(call)
    call()
    call()
    torch.cuda.synchronize()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 5 or (len(times) < _MOST_REPEATS and time.perf_counter() - started < _SECONDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def wall_seconds(call: Callable[[], object], *, repeats: int = _STEPS) -> float:
    """Return the time of one of many calls, launches and all."""
    repeats = 1 if INTERPRETED else repeats
    for _ in range(2):
        call()
    if not INTERPRETED:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    if not INTERPRETED:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def print_summary(found: dict[str, Any]) -> None:
    """Print what to put into docs/gpu-results.md."""
    print("\n=== summary", json.dumps(found["machine"]))
    rights = found.get("correct") or []
    print(f"comparisons {len(rights)}, wrong {sum(not row['right'] for row in rights)}; failed parts {found['failed']}")
    print("ceilings", found.get("ceilings"), "| cpu engine", found.get("cpu engine"))
    print("best tuning", found["best tuning"])
    for name, rows in found.items():
        if name.startswith("operators"):
            times = {row["operator"]: row for row in rows if "ps/pair" in row}
            print(name, "|", ", ".join(f"{key} {row['ms/MP']:.4f}" for key, row in times.items()), "ms/MP")
            for key, flops in (("render", 15), ("jvp", 31), ("vjp", 33)):
                row = times[key]
                rate = flops / row["ps/pair"]
                print(f"    {key}: {row['ps/pair']:.3f} ps/pair, {rate:.1f} TFLOP/s of wanted pairs ({flops} each)")
        if name.startswith(("pairs", "visit", "scene")):
            print(name, "|", rows)
        if name.startswith("steps"):
            for row in rows:
                rate = row["MP x steps/s"]
                print(
                    name,
                    f"| {row['what']}: {rate:.0f} MP x steps/s, {rate / PUBLISHED:.1f} x the published {PUBLISHED}",
                )


if __name__ == "__main__":
    main()
