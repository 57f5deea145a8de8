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


class NoProgress:
    """Shows nothing."""

    def start(self, stage: str, *, total: int, done: int) -> None:
        """Do nothing."""

    def advance(self, note: str = "", *, jobs: int = 1) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""
