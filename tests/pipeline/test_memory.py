"""What a run takes is seen while it runs, workers included, and stands in the report beside what was projected."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import psutil

from pipeline.compress import compress
from pipeline.memory import MemoryWatch, resident_bytes

HELD = 96 << 20
HOLD = f"import numpy as np, time; held = np.ones({HELD}, np.uint8); print(flush=True); time.sleep(60)"


def test_memory_of_a_process_and_its_children_counts_together():
    before = resident_bytes(psutil.Process())
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        both = resident_bytes(psutil.Process())
        child.kill()
    assert both - before > HELD


def test_a_peak_is_booked_under_the_stage_it_came_in_even_if_it_has_passed():
    with MemoryWatch() as watch:
        watch.begin("calm")
        watch.begin("busy")
        held = np.ones(HELD, np.uint8)
        time.sleep(1.0)  # a few looks
        del held
        watch.begin("calm again")
    peaks = watch.peaks
    assert set(peaks) == {"calm", "busy", "calm again"}
    assert peaks["busy"] > peaks["calm"] + HELD // 2


def test_the_report_has_the_peak_of_each_stage_beside_the_projected_one(tmp_path, photo, write_tiff, quick, serial):
    source = write_tiff(tmp_path / "a.tif", photo("china", 100, 130))
    report = compress(source, tmp_path / "a.zarr", config=quick(), resources=serial).to_dict()
    assert set(report["memory"]) == set(report["projected_memory"]) == set(report["seconds"])
    assert all(peak > 0 for peak in report["memory"].values())
