"""Object stores, and files in them, read in ranges: ``s3://``, ``gs://``, ``az://`` and ``https://`` URLs.

obstore speaks to the stores; credentials, region and endpoint come from the environment, by the names that each store's
own tools use (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``,
``AZURE_STORAGE_ACCOUNT_NAME``, ...). What fails for a moment is tried again, for minutes, with growing pauses.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import OrderedDict
from collections.abc import Generator, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from smartsplat.errors import ConfigError, SmartsplatError, SourceError, SourceUnavailable

_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https")
_BLOCK_BYTES, _BLOCKS_KEPT = 2 << 20, 8
_SECONDS_OF_RETRIES = "SMARTSPLAT_RETRY_SECONDS"  # variable: how long what fails is tried again
_RETRY_SECONDS = 180.0
_ATTEMPTS = 20
_LISTINGS = 4  # attempts at each, beside those at a request, as obstore does not go on in the middle of an answer


class ObjectFile:
    """A file in an object store, open for reading: fetched in blocks, of which the latest are kept.

    Readers of images go to and fro in small steps; what they read in order is fetched once.

    Parameters
    ----------
    url
        Of the object.

    Raises
    ------
    SourceError
        If there is no such object, or it may not be read.
    SourceUnavailable
        If the store does not answer.
    """

    def __init__(self, url: str) -> None:
        import obstore

        self.url = url
        self._store, self._key = locate(url)
        with store_errors(url):
            self.size: int = obstore.head(self._store, self._key)["size"]
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def __enter__(self) -> ObjectFile:
        return self

    def __exit__(self, *details: object) -> None:
        self._blocks.clear()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size` of them, unless that is negative."""
        end = self.size if size < 0 else min(self.size, self._at + size)
        parts: list[bytes] = []
        while self._at < end:
            index, start = divmod(self._at, _BLOCK_BYTES)
            part = self._block(index)[start : start + end - self._at]
            parts.append(part)
            self._at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, and return where that is."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence])
        return self._at

    def tell(self) -> int:
        """Return where the next bytes come from."""
        return self._at

    def _block(self, index: int) -> bytes:
        """Return a block, kept or fetched."""
        import obstore

        if index not in self._blocks:
            start = index * _BLOCK_BYTES
            end = min(start + _BLOCK_BYTES, self.size)
            with store_errors(self.url):
                self._blocks[index] = bytes(obstore.get_range(self._store, self._key, start=start, end=end))
            while len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(index)
        return self._blocks[index]


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is the URL of an object in a store; a ``file://`` URL is not, see `local_path`.

    Examples
    --------
    >>> is_url("s3://bucket/a.tif"), is_url("folder/a.tif")
    (True, False)
    """
    return "://" in str(path) and not str(path).startswith("file://")


def local_path(path: str | os.PathLike[str]) -> str:
    """Return the path that a ``file://`` URL says, and any other as it is.

    Examples
    --------
    >>> local_path("file:///data/a%20b.tif"), local_path("a.tif")
    ('/data/a b.tif', 'a.tif')
    """
    return unquote(urlsplit(str(path)).path) if str(path).startswith("file://") else str(path)


def locate(url: str) -> tuple[Any, str]:
    """Return the store that a URL names, and the key within it.

    Raises
    ------
    ConfigError
        If there is no such kind of store, or its settings make no sense.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"{url}: {parts.scheme}:// is no store that is known; use {', '.join(_SCHEMES)}")
    return store_at(f"{parts.scheme}://{parts.netloc}"), parts.path.lstrip("/")


def list_objects(url: str) -> Iterator[str]:
    """Yield the URLs of all objects below a prefix.

    Raises
    ------
    SourceError, SourceUnavailable
        If it may not be listed, or the store does not answer.
    """
    store, key = locate(url)
    root = url[: len(url) - len(key)] if key else url
    with store_errors(url):
        yield from (f"{root}{name}" for name, _ in listed(store, key))


def listed(store: Any, prefix: str) -> list[tuple[str, int]]:
    """Return key and size of each object below a prefix; a listing that breaks off is begun again, a few times."""
    import obstore

    for attempt in range(_LISTINGS):
        try:
            return [(each["path"], each["size"]) for batch in obstore.list(store, prefix=prefix) for each in batch]
        except obstore.exceptions.GenericError:
            if attempt == _LISTINGS - 1:
                raise
    raise AssertionError


@contextlib.contextmanager
def store_errors(
    url: str,
    *,
    bad: type[SmartsplatError] = SourceError,
    unavailable: type[SmartsplatError] = SourceUnavailable,
) -> Generator[None]:
    """Turn what a store says into errors that say what to do: `bad` or `unavailable`."""
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        raise bad(f"{url}: no such object; check its name") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise bad(f"{url}: access is refused; check the credentials in the environment") from error
    except (exceptions.BaseError, OSError) as error:
        raise unavailable(
            f"{url}: the store does not answer ({_cause(error)}); run the same command again once it does"
        ) from error


@functools.lru_cache(maxsize=16)
def store_at(url: str) -> Any:
    """Return the store whose keys are relative to a URL; raise `ConfigError` if its settings make no sense."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    seconds = float(os.environ.get(_SECONDS_OF_RETRIES, _RETRY_SECONDS))
    retries: Any = {
        "max_retries": _ATTEMPTS,
        "retry_timeout": timedelta(seconds=seconds),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=15), "base": 2},
    }
    try:
        return from_url(url, retry_config=retries)
    except (BaseError, ValueError) as error:
        raise ConfigError(f"{url}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """Return the first sentence of what obstore says, which goes on for a page."""
    return str(error).strip().splitlines()[0].rstrip(".")
