"""What the tests of the optimisers share."""

from __future__ import annotations

import numba
import pytest


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: the bits are the same, as is tested, and other work on the machine does not slow it."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)
