"""Where log records go: to standard error, as lines for people or as objects for programs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from smartsplat.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")

_OURS = ("smartsplat", "storage", "pipeline", "flows")
_FIELDS = ("scene", "stage", "tile")  # that a record may have beside its message


def set_up_logs(level: str = "info", *, as_json: bool = False, scene: str | None = None) -> None:
    """Let our own records from `level` on, and warnings of others, go to standard error.

    Parameters
    ----------
    level
        One of `LEVELS`.
    as_json
        One object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, ``scene``, and where they are known
        ``stage`` and ``tile``.
    scene
        That this process works on.

    Raises
    ------
    ConfigError
        If there is no such level.
    """
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; use {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(scene) if as_json else logging.Formatter("smartsplat: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    logging.getLogger("pyvips").setLevel(logging.ERROR)  # its warnings become errors of ours, said once


class _JsonFormatter(logging.Formatter):
    def __init__(self, scene: str | None) -> None:
        super().__init__()
        self._scene = scene

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        values |= {} if self._scene is None else {"scene": self._scene}
        values |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            values["error"] = self.formatException(record.exc_info)
        return json.dumps(values)
