"""How long work tells whoever watches that it moves."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Something that shows the progress of one stage after another."""

    def start(self, stage: str, *, total: int, done: int) -> None:
        """Begin `stage`: `total` jobs, of which `done` were finished by an earlier run."""
        ...

    def advance(self, note: str = "", *, jobs: int = 1) -> None:
        """So many more jobs of the stage are finished."""
        ...

    def finish(self) -> None:
        """The stage is over."""
        ...

    def overall(self, share: float, *, seconds_left: float | None) -> None:
        """So much of the work of all stages is done, from 0 to 1, and the rest takes about so long (None = unknown)."""
        ...


class NoProgress:
    """Shows nothing."""

    def start(self, stage: str, *, total: int, done: int) -> None:
        """Do nothing."""

    def advance(self, note: str = "", *, jobs: int = 1) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def overall(self, share: float, *, seconds_left: float | None) -> None:
        """Do nothing."""
