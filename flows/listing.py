"""What an archive holds: its images, from a folder, a pattern, a list or a STAC item collection, and a name for each.

A name is the place of the image's scene under the destination, less ``.zarr``. It depends on nothing but the image
itself, so that images that come later change no other's; the file's suffix is part of it, as ``a.png`` may lie beside
``a.jpg``.
"""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import unquote

from smartsplat.errors import SourceError
from storage.remote import is_url, list_objects, local_path

SUFFIXES = frozenset((".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif"))
"""Of the files in a folder that are taken for images; lists and patterns may name any file."""

_IMAGE_ROLES = ("data", "visual")
_NAME, _SOURCE = "name", "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of an archive.

    Parameters
    ----------
    name
        Of its scene, with ``/`` between folders.
    source
        Path of the file.
    """

    name: str
    source: str


def list_images(archive: str, *, leave_out: Path, asset: str | None = None) -> list[Image]:
    """Return the images of an archive, by name.

    Parameters
    ----------
    archive
        A folder, of which all images are taken, also those in folders below; a pattern with ``*``, ``?`` or ``[``;
        a list of paths (``.txt``, one a line, ``#`` begins a comment), a table (``.csv``) or objects, one a line
        (``.jsonl``, ``.ndjson``), with ``source`` and maybe ``name``; or a STAC item collection (``.json``,
        ``.geojson``). Paths in a list are relative to its folder, or URLs. Or the URL of a prefix in an object store,
        e.g. ``s3://bucket/images/``.
    leave_out
        A folder in which nothing is looked for: the destination, which may lie within the archive.
    asset
        Which asset of each STAC item is its image; needed only if an item has several that may be.

    Raises
    ------
    SourceError
        If there is no such archive, it cannot be read, or it holds no image or two of one name.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.png", "b.tif", "notes.md"):
    ...         _ = Path(folder, name).write_bytes(b"")
    ...     [image.name for image in list_images(folder, leave_out=Path(folder, "scenes"))]
    ['a.png', 'b.tif']
    """
    path = Path(archive)
    if is_url(archive):
        images = list(_of_store(archive))
    elif path.is_dir():
        images = list(_of_folder(path, leave_out=leave_out.resolve()))
    elif path.is_file():
        images = list(_of_file(path, asset=asset))
    elif glob.has_magic(archive):
        images = [image for image in _of_pattern(archive) if not _lies_in(image, leave_out.resolve())]
    else:
        raise SourceError(f"{archive}: no such folder or list; give a folder, a pattern, a list or a STAC collection")
    if not images:
        raise SourceError(f"{archive}: holds no image ({', '.join(sorted(SUFFIXES))})")
    _check_names(archive, images)
    return sorted(images, key=lambda image: image.name)


def _of_folder(folder: Path, *, leave_out: Path) -> Iterator[Image]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not name.endswith(".zarr") and Path(parent, name).resolve() != leave_out
        ]
        for file in map(Path(parent).joinpath, files):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                yield Image(name=file.relative_to(folder).as_posix(), source=str(file))


def _of_store(url: str) -> Iterator[Image]:
    prefix = url if url.endswith("/") else f"{url}/"
    for found in list_objects(prefix):
        if PurePosixPath(found).suffix.lower() in SUFFIXES:
            yield Image(name=unquote(found[len(prefix) :]), source=found)


def _of_pattern(pattern: str) -> Iterator[Image]:
    # What lies above the first wildcard is the folder that names are relative to.
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:first])
    for found in glob.iglob(pattern, recursive=True):  # noqa: PTH207 (of a whole pattern, with its folder)
        if Path(found).is_file():
            yield Image(name=Path(found).relative_to(folder).as_posix(), source=found)


def _lies_in(image: Image, folder: Path) -> bool:
    return Path(image.source).resolve().is_relative_to(folder)


def _of_file(path: Path, *, asset: str | None) -> Iterator[Image]:
    readers: dict[str, Callable[[str], Iterable[Any]]] = {
        ".txt": _lines,
        ".csv": lambda text: csv.DictReader(text.splitlines()),
        **dict.fromkeys((".jsonl", ".ndjson"), lambda text: map(json.loads, _lines(text))),
        **dict.fromkeys((".json", ".geojson"), lambda text: _stac_rows(text, asset=asset)),
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise SourceError(f"{path}: not a list ({', '.join(readers)}); for one image use smartsplat compress")
    try:
        for number, row in enumerate(readers[suffix](path.read_text(encoding="utf-8-sig")), start=1):
            yield _listed(row, folder=path.parent, where=f"{path}: entry {number}")
    except (OSError, ValueError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as a list: {' '.join(str(error).split())}") from error


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _listed(row: Any, *, folder: Path, where: str) -> Image:
    values = cast("dict[str, Any]", row if isinstance(row, dict) else {_SOURCE: row})
    source = values.get(_SOURCE)
    if not isinstance(source, str) or not source:
        raise SourceError(f"{where} names no {_SOURCE}")
    name = values.get(_NAME) or (Path(source).as_posix() if _stays_below(source) else PurePosixPath(source).name)
    return Image(name=str(name), source=source if is_url(source) else str(folder / local_path(source)))


def _stac_rows(text: str, *, asset: str | None) -> Iterator[dict[str, str]]:
    """Yield name and source of each item of a collection, or of a single item."""
    values: Any = json.loads(text)
    items = values.get("features", [values]) if isinstance(values, dict) else values
    for item in items:
        if not isinstance(item, dict) or not item.get("id") or not isinstance(item.get("assets"), dict):
            raise ValueError("not a STAC item collection: an item without an id or assets")
        found = cast("dict[str, Any]", item)
        yield {_NAME: str(found["id"]).replace("/", "_"), _SOURCE: str(_chosen(found, asset)["href"])}


def _chosen(item: dict[str, Any], asset: str | None) -> dict[str, Any]:
    """Return the asset that is an item's image."""
    assets: dict[str, Any] = item["assets"]
    keys = [asset] if asset is not None else [key for key, each in assets.items() if _may_be_image(each)]
    if len(keys) != 1 or keys[0] not in assets:
        raise ValueError(f"item {item['id']} has the assets {', '.join(assets)}: choose one with --asset")
    return assets[keys[0]]


def _may_be_image(asset: dict[str, Any]) -> bool:
    kind = str(asset.get("type", ""))
    return kind.startswith("image/") and (
        not asset.get("roles") or any(role in _IMAGE_ROLES for role in asset["roles"])
    )


def _check_names(archive: str, images: list[Image]) -> None:
    seen: dict[str, str] = {}
    for image in images:
        if not _stays_below(image.name):
            raise SourceError(f"{archive}: the name {image.name!r} leads out of the destination")
        if image.name in seen:
            raise SourceError(
                f"{archive}: {seen[image.name]} and {image.source} have one name, {image.name}; "
                "give names of your own in a list (.csv or .jsonl)"
            )
        seen[image.name] = image.source


def _stays_below(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "://" not in name
