"""The record of a run: one small file among a scene's working data, by which others see how far the run is.

Nothing depends on it. What cannot be written is left out, and what cannot be read counts as not there.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, cast

from storage.scene import WORK

_NAME = "progress.json"


def write_record(scene: Path, values: dict[str, Any]) -> None:
    """Replace the record of the scene at `scene`, in one step: a reader sees the old one or the new one, whole.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "work").mkdir()
    ...     write_record(Path(folder), {"done": 3})
    ...     read_record(Path(folder))
    {'done': 3}
    """
    file = scene / WORK / _NAME
    partial = file.with_name(f"{_NAME}.partial")  # swept up like those of other writes that were killed
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(values))
        partial.replace(file)


def read_record(scene: Path) -> dict[str, Any] | None:
    """Return the record of the scene at `scene`; None if there is none, or it is damaged."""
    try:
        values = json.loads((scene / WORK / _NAME).read_bytes())
    except (OSError, ValueError):
        return None
    return cast("dict[str, Any]", values) if isinstance(values, dict) else None


def delete_record(scene: Path) -> None:
    """Delete the record, if there is one."""
    with contextlib.suppress(OSError):
        (scene / WORK / _NAME).unlink(missing_ok=True)
