"""What an archive holds, however it is named; and what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.listing import Image, list_images
from smartsplat.errors import SourceError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.PNG", "a.tif", "below/a.tif", "notes.md", ".hidden.png", "old.zarr/x.png", "out/y.jpg"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    return tmp_path / "images"


def names(archive: object, *, leave_out: Path = Path("nowhere"), **options: str) -> list[str]:
    return [image.name for image in list_images(str(archive), leave_out=leave_out, **options)]


def test_a_folder_is_all_its_images_but_those_of_the_destination(folder: Path):
    assert names(folder, leave_out=folder / "out") == ["a.tif", "b.PNG", "below/a.tif"]
    assert names(folder) == ["a.tif", "b.PNG", "below/a.tif", "out/y.jpg"]


def test_a_pattern_names_what_it_finds_below_its_first_wildcard(folder: Path):
    assert names(folder / "*.tif") == ["a.tif"]
    assert names(folder / "**" / "*.tif") == ["a.tif", "below/a.tif"]
    assert names(folder.parent / "imag*" / "a.tif") == ["images/a.tif"]
    assert names(folder / "**" / "*.jpg", leave_out=folder / "a") == ["out/y.jpg"]


def test_an_images_name_does_not_depend_on_others(folder: Path):
    before = list_images(str(folder), leave_out=Path("nowhere"))
    (folder / "a.png").write_bytes(b"")
    after = list_images(str(folder), leave_out=Path("nowhere"))
    assert set(before) < set(after)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".txt", "# a comment\n\na.tif\n  below/a.tif\n"),
        (".csv", "source,note\na.tif,x\nbelow/a.tif,y\n"),
        (".csv", "\ufeffsource,name\na.tif,\nbelow/a.tif,below/a.tif\n"),
        (".jsonl", '{"source": "a.tif"}\n"below/a.tif"\n'),
        (".ndjson", '{"source": "a.tif", "name": "a.tif"}\n{"source": "below/a.tif"}\n'),
    ],
)
def test_paths_in_a_list_are_relative_to_it(folder: Path, suffix: str, text: str):
    file = folder / f"list{suffix}"
    file.write_text(text, encoding="utf-8")
    assert list_images(str(file), leave_out=Path("nowhere")) == [
        Image(name="a.tif", source=str(folder / "a.tif")),
        Image(name="below/a.tif", source=str(folder / "below/a.tif")),
    ]


def test_a_list_names_its_scenes_if_it_wants_to(folder: Path):
    file = folder / "list.csv"
    file.write_text(f"source,name\n{folder / 'a.tif'},first\nfile://{folder}/below/a.tif,sub/second\n")
    images = list_images(str(file), leave_out=Path("nowhere"))
    assert [image.name for image in images] == ["first", "sub/second"]
    assert images[1].source == str(folder / "below/a.tif")


def item(name: str, **assets: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": name,
        "assets": {key: {"href": f"{name}-{key}.tif"} | a for key, a in assets.items()},
    }


TIFF: dict[str, Any] = {"type": "image/tiff; application=geotiff"}


def test_of_a_stac_item_the_one_image_is_taken_or_the_one_asked_for(folder: Path):
    file = folder / "items.json"
    items = [
        item("one", visual=TIFF | {"roles": ["visual"]}, thumbnail={"type": "image/png", "roles": ["thumbnail"]}),
        item("two", visual=TIFF, metadata={"type": "application/xml"}),
    ]
    file.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    assert [image.source for image in list_images(str(file), leave_out=Path("nowhere"))] == [
        str(folder / "one-visual.tif"),
        str(folder / "two-visual.tif"),
    ]
    assert names(file, asset="visual") == ["one", "two"]
    with pytest.raises(SourceError, match="item two has the assets visual, metadata: choose one with --asset"):
        names(file, asset="thumbnail")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.txt", "../a.tif\n../b/a.tif\n", "have one name, a.tif; give names of your own"),
        ("list.csv", "path\na.tif\n", "entry 1 names no source"),
        ("list.csv", "source,name\na.tif,../../x\n", "leads out of the destination"),
        ("list.csv", "source,name\na.tif,/x\n", "leads out of the destination"),
        ("list.jsonl", "{\n", "cannot be read as a list"),
        ("list.txt", "# nothing\n", "holds no image"),
        ("items.json", '{"features": [{"id": "a"}]}', "not a STAC item collection"),
        ("items.json", "[3]", "not a STAC item collection"),
        ("image.png", "", "not a list .*; for one image use smartsplat compress"),
    ],
)
def test_what_is_no_list_says_why(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        names(tmp_path / name)


def test_items_with_several_images_need_a_choice(tmp_path: Path):
    (tmp_path / "items.json").write_text(json.dumps({"features": [item("one", red=TIFF, nir=TIFF)]}))
    with pytest.raises(SourceError, match="item one has the assets red, nir: choose one with --asset"):
        names(tmp_path / "items.json")
    assert names(tmp_path / "items.json", asset="nir") == ["one"]


def test_no_archive_and_an_empty_one_say_so(tmp_path: Path):
    with pytest.raises(SourceError, match="no such folder or list"):
        names(tmp_path / "none")
    for empty in (tmp_path, tmp_path / "*.png"):
        with pytest.raises(SourceError, match="holds no image"):
            names(empty)
