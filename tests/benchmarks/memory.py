"""Peak memory of `smartsplat compress`, this process and its workers together, beside what `plan` projects.

python -m tests.benchmarks.memory IMAGE [IMAGE ...] [-- OPTIONS OF COMPRESS]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

MIB = 1 << 20
SECONDS_BETWEEN_LOOKS = 0.05
COMMAND = [sys.executable, "-m", "flows.cli"]


def main() -> None:
    """Print one line an image."""
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    images, options = words[:at], words[at + 1 :]
    for image in images:
        planned = json.loads(subprocess.check_output([*COMMAND, "plan", image, "--json", *options]))
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            peak = peak_bytes([*COMMAND, "compress", image, str(Path(folder, "scene.zarr")), "--json", *options])
            seconds = time.perf_counter() - started
        height, width, _ = planned["shape"]
        print(
            f"{Path(image).name}: {height} x {width}, {planned['executor']} x {planned['workers']}: "
            f"peak {peak / MIB:.0f} MiB, projected {planned['memory_bytes'] / MIB:.0f} MiB, {seconds:.1f} s",
            flush=True,
        )


def peak_bytes(command: list[str]) -> int:
    """Run a command; return the highest sum of resident memory over it and its descendants."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _tree_bytes(process))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return peak


def _tree_bytes(process: psutil.Process) -> int:
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    main()
