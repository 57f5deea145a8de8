"""Stage the image: its pixels, strip by strip, into the scene's working data."""

from __future__ import annotations

import numpy as np

from pipeline.executors import release_memory
from pipeline.run import Run
from smartsplat.normalization import Normalization
from storage.groups import disk_errors, has_array
from storage.pixels import STRIP_HEIGHT, PixelStore
from storage.source import read_strips


def ingest(run: Run) -> None:
    """Write every strip that is not there yet, then note the range of the pixels.

    Raises
    ------
    SourceError
        If the file turns out to be damaged.
    """
    source, work = run.plan.source, run.scene.work(writable=True)
    with disk_errors(run.scene.path):
        if has_array(work, "strips"):
            pixels = PixelStore.open(work)
        else:
            pixels = PixelStore.create(work, shape=source.shape, dtype=source.dtype)
        done = pixels.strips_done()
        if not done.all():
            _write_missing(run, pixels, first=int(np.argmin(done)), done=done)
            release_memory()  # libvips' and our own strips, before the workers ask for theirs
    low, high = pixels.value_range()
    run.scene.update(normalization=Normalization.of_range(low, high, dtype=pixels.dtype))


def _write_missing(run: Run, pixels: PixelStore, *, first: int, done: np.ndarray) -> None:
    run.progress.start("ingest", total=len(done), done=int(done.sum()))
    try:
        for y0, strip in read_strips(run.plan.source, strip_height=STRIP_HEIGHT, start=first * STRIP_HEIGHT):
            index = y0 // STRIP_HEIGHT
            if not done[index]:
                pixels.write_strip(index, strip)
                run.progress.advance()
    finally:
        run.progress.finish()
