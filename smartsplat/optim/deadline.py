"""A time after which a fit gives up; looked at between steps, as a step cannot be stopped halfway."""

from __future__ import annotations

import math
import time

from smartsplat.errors import FitError


class Deadline:
    """So many seconds from now.

    Parameters
    ----------
    seconds
        None = never.

    Examples
    --------
    >>> Deadline(None).check()
    >>> Deadline(0.0).check()
    Traceback (most recent call last):
    smartsplat.errors.FitError: the fit takes longer than the 0 s allowed
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._end = time.monotonic() + self._seconds

    def check(self) -> None:
        """Raise `FitError` if the time is up."""
        if time.monotonic() >= self._end:
            raise FitError(f"the fit takes longer than the {self._seconds:g} s allowed")
