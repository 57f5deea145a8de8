"""One step of gradient descent on the squared error, 1 megapixel, one thread: this engine beside plain torch autograd.

The torch step gathers, for every 16 px tile, the Gaussians whose footprint's box meets it, and leaves the rest to
autograd. Tiles with lists of about the same length are done together. Needs torch (pip install torch).

python -m tests.benchmarks.step
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numba
import numpy as np
import torch

from flows.engine_scene import engine_scene
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.render.cpu import operators
from smartsplat.render.footprint import CUTOFF, half_extents

SIDE = 1024
BIN = 16
TILES_AT_ONCE = 64
REPEATS = 5
RATE = 1e-9  # small: every step does the same work


def main() -> None:
    """Print both times, taken in turns, their ratio, and how far the gradients are apart."""
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    gaussians, region = engine_scene(SIDE)
    rng = np.random.default_rng(1)
    target = rng.random((SIDE, SIDE, 3), dtype=np.float32)
    ours, theirs = EngineStep(gaussians, region, target), TorchStep(gaussians, target)
    difference = np.abs(ours.gradient() - theirs.gradient()).max(axis=0) / np.abs(theirs.gradient()).max(axis=0)
    print("largest difference of the gradients, by parameter:", " ".join(f"{value:.1e}" for value in difference))
    seconds: dict[str, list[float]] = {"engine": [], "torch": []}
    for _ in range(REPEATS):
        for name, step in (("engine", ours), ("torch", theirs)):
            started = time.perf_counter()
            step.take()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name}: {1e3 * value / (SIDE * SIDE / 1e6):.1f} ms/MP a step (median of {REPEATS})")
    print(f"ratio: {medians['torch'] / medians['engine']:.1f}")


class EngineStep:
    """A step with this project's engine."""

    def __init__(self, gaussians: Gaussians, region: Region, target: np.ndarray) -> None:
        self.rows, self.region = gaussians.to_rows(), region
        at = operators(gaussians, region)
        self.planes = at.new_planes(3)
        self.target = np.zeros_like(self.planes)
        margin = (self.planes.shape[2] - region.width) // 2
        self.target[:, :, margin:-margin] = np.moveaxis(target, 2, 0)

    def gradient(self) -> np.ndarray:
        """Return the derivative of the squared error, ``(N, 8)``."""
        at = operators(Gaussians.from_rows(self.rows), self.region)
        at.draw(self.planes, target=self.target)
        return 2 * at.to_rows_gradient(at.gather(self.planes))

    def take(self) -> None:
        """Move against it."""
        self.rows -= np.float32(RATE) * self.gradient()


@dataclass
class _Batch:
    """Tiles with about equally many Gaussians: which, a mask for the shorter lists, and their pixels."""

    index: torch.Tensor
    mask: torch.Tensor
    y: torch.Tensor
    x: torch.Tensor
    target: torch.Tensor


class TorchStep:
    """A step by autograd."""

    def __init__(self, gaussians: Gaussians, target: np.ndarray) -> None:
        self.rows = torch.tensor(gaussians.to_rows(), requires_grad=True)
        lists = _lists(gaussians)
        order = sorted(range(len(lists)), key=lambda tile: len(lists[tile]))
        image = torch.tensor(target)
        self.batches = [
            _batch([lists[tile] for tile in order[start : start + TILES_AT_ONCE]], order[start:], image)
            for start in range(0, len(order), TILES_AT_ONCE)
        ]

    def gradient(self) -> np.ndarray:
        """Return the derivative of the squared error, ``(N, 8)``."""
        self.rows.grad = None
        for batch in self.batches:  # one graph at a time, as memory allows
            self._loss(batch).backward()
        assert self.rows.grad is not None
        return self.rows.grad.numpy()

    def take(self) -> None:
        """Move against it."""
        gradient = torch.from_numpy(self.gradient())
        with torch.no_grad():
            self.rows -= RATE * gradient

    def _loss(self, batch: _Batch) -> torch.Tensor:
        rows = self.rows[batch.index]  # tiles, list, parameters
        dy, dx = batch.y[:, None] - rows[..., 0:1], batch.x[:, None] - rows[..., 1:2]
        cos, sin = torch.cos(rows[..., 4:5]), torch.sin(rows[..., 4:5])
        u, v = (cos * dy + sin * dx) / rows[..., 2:3], (cos * dx - sin * dy) / rows[..., 3:4]
        squared = u * u + v * v
        weights = torch.exp(-0.5 * squared) * (squared <= CUTOFF**2) * batch.mask[..., None]
        image = torch.einsum("tkp,tkc->tpc", weights, rows[..., 5:])
        return ((image - batch.target) ** 2).sum()


def _lists(gaussians: Gaussians) -> list[list[int]]:
    """Return which Gaussians' boxes meet each bin, row by row."""
    per_side = SIDE // BIN
    low = np.clip((gaussians.means - half_extents(gaussians)) // BIN, 0, per_side - 1).astype(int)
    high = np.clip((gaussians.means + half_extents(gaussians)) // BIN, 0, per_side - 1).astype(int)
    lists: list[list[int]] = [[] for _ in range(per_side**2)]
    for i, ((y0, x0), (y1, x1)) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                lists[y * per_side + x].append(i)
    return lists


def _batch(lists: list[list[int]], tiles: list[int], image: torch.Tensor) -> _Batch:
    longest = max(1, max(map(len, lists)))
    index, mask = torch.zeros(len(lists), longest, dtype=torch.long), torch.zeros(len(lists), longest)
    for row, members in enumerate(lists):
        index[row, : len(members)] = torch.tensor(members, dtype=torch.long)
        mask[row, : len(members)] = 1
    offsets = torch.arange(BIN * BIN)
    first = torch.tensor([divmod(tile, SIDE // BIN) for tile in tiles[: len(lists)]]) * BIN
    y, x = first[:, 0:1] + offsets // BIN, first[:, 1:2] + offsets % BIN
    return _Batch(index=index, mask=mask, y=y + 0.5, x=x + 0.5, target=image[y, x])


if __name__ == "__main__":
    main()
