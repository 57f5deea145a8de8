"""How much memory a run takes, watched while it runs, to be held against what was projected."""

from __future__ import annotations

import contextlib
import threading
from typing import Self

import psutil

_SECONDS_BETWEEN_LOOKS = 0.2


def resident_bytes(process: psutil.Process) -> int:
    """Return the resident memory of a process and its descendants together, bytes.

    Pages that processes share count once for each.

    Raises
    ------
    psutil.Error
        If the process has ended.
    """
    total = 0
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            total += each.memory_info().rss
    return total


class MemoryWatch:
    """Looks at the memory of this process and its workers a few times a second; a context manager.

    Workers of somebody else's cluster are not seen.
    """

    def __init__(self) -> None:
        self._stage = ""
        self._peaks: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="memory-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def peaks(self) -> dict[str, int]:
        """Highest resident bytes seen in each stage."""
        return dict(self._peaks)

    def begin(self, stage: str) -> None:
        """Book what is seen from now on under `stage`."""
        self._stage = stage
        self._note()

    def _look(self) -> None:
        while not self._stopped.wait(_SECONDS_BETWEEN_LOOKS):
            self._note()

    def _note(self) -> None:
        stage = self._stage
        if stage:
            self._peaks[stage] = max(self._peaks.get(stage, 0), resident_bytes(psutil.Process()))
