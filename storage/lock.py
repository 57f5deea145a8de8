"""One run at a time on a scene: a lock that its process holds, and that ends with it, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from smartsplat.errors import StoreError
from storage.groups import disk_errors

_NOT_THERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of file systems without locks
_ATTEMPTS = 100

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def only_writer(scene: Path) -> Generator[None]:
    """Keep all others from writing to the scene at `scene`, which need not be there yet.

    The lock is on a file beside the scene, ``.NAME.lock``, which is deleted afterwards; after a kill it stays behind,
    and locks nothing.

    Raises
    ------
    StoreError
        If another process has it; the message says which.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with only_writer(Path(folder, "scene.zarr")):
    ...         print([path.name for path in Path(folder).iterdir()])
    ...     print(list(Path(folder).iterdir()))
    ['.scene.zarr.lock']
    []
    """
    file = _file(scene)
    with disk_errors(scene):
        handle = _acquired(file, scene)
    try:
        yield
    finally:
        try:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)  # before it is let go: who has it open sees that it is no longer there
        finally:
            os.close(handle)


def forget_dead_writer(scene: Path) -> None:
    """Delete the lock file that a killed run left, if there is one."""
    if _file(scene).exists():
        with contextlib.suppress(StoreError, OSError), only_writer(scene):
            pass


def _file(scene: Path) -> Path:
    return scene.parent / f".{scene.name}.lock"


def _acquired(file: Path, scene: Path) -> int:
    """Return the handle of the locked file."""
    for _ in range(_ATTEMPTS):
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(handle)
            os.close(handle)
            raise StoreError(f"{scene}: another run works on it{owner}; wait for it, or stop it") from None
        except OSError as error:
            if error.errno not in _NOT_THERE:
                os.close(handle)
                raise
            logger.warning("%s: this file system has no locks; see to it that no other run works on the scene", scene)
        if _is_named(handle, file):
            with contextlib.suppress(OSError):  # of a full disk: who has it is said, not needed
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
            return handle
        os.close(handle)  # its last owner deleted it meanwhile
    raise StoreError(f"{scene}: its lock {file} cannot be taken; delete that file if no run works on the scene")


def _is_named(handle: int, file: Path) -> bool:
    """Return whether the open file still has its name."""
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _owner(handle: int) -> str:
    """Return who has the lock and for how long, as far as the file says."""
    try:
        values: dict[str, Any] = json.loads(os.pread(handle, 4096, 0))
        seconds = max(0.0, time.time() - os.fstat(handle).st_mtime)
        return f", process {values['pid']} on {values['host']}, for {seconds:.0f} s"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
