"""A finished scene in a real S3 server: read like one in a folder, of which only what is needed is fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obstore
import pytest
from obstore.store import from_url
from PIL import Image
from sklearn.datasets import load_sample_images

from flows.settings import scene_config
from pipeline.evaluate import verify
from pipeline.plan import Resources
from smartsplat import Region, compress, open_scene
from smartsplat.errors import StoreError, StoreUnavailable
from storage import remote
from storage.remote_scene import folder_at, local_folder
from storage.scene import Scene
from tests.storage.stores import BUCKET, Proxy, s3_server

URL = f"s3://{BUCKET}/scenes/photo.zarr"


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of many tiles."""
    path = tmp_path_factory.mktemp("scene")
    Image.fromarray(load_sample_images().images[0]).save(path / "photo.png")
    config = scene_config("draft", ratio=20, tile=64)
    compress(path / "photo.png", path / "photo.zarr", config=config, resources=Resources(executor="serial"))
    return path / "photo.zarr"


@pytest.fixture
def store(server: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The server in the environment, without failures, the scene in it."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.fails = lambda number, method, path: None
    remote.store_at.cache_clear()
    upload(folder)
    return server


def upload(folder: Path) -> None:
    bucket = from_url(f"s3://{BUCKET}")
    for file in folder.rglob("*"):
        if file.is_file():
            obstore.put(bucket, f"scenes/photo.zarr/{file.relative_to(folder).as_posix()}", file.read_bytes())


def test_it_is_what_it_is_in_a_folder(store, folder):
    here, there = open_scene(folder), open_scene(URL)
    np.testing.assert_array_equal(there[:, :], here[:, :])
    assert there.nbytes == here.nbytes
    assert there.manifest == here.manifest
    assert here.fetched is None
    found = verify(folder_at(URL))
    assert found == verify(folder)
    assert found["sound"]


def test_a_small_region_fetches_little_more_than_its_tiles(store, folder):
    view = open_scene(URL)
    assert view.fetched is not None
    before = view.fetched[0]
    region = Region(y0=200, y1=240, x0=300, x1=350)
    pixels = view.render(region)
    fetched = view.fetched[0] - before
    # As much as its share of all tiles: those that reach it are nine at the most, of 70.
    tiles = sum(file.stat().st_size for file in (folder / "gaussians").iterdir()) * 9 / len(view.manifest.grid)
    assert 0 < fetched < 3 * tiles
    np.testing.assert_array_equal(pixels, open_scene(folder).render(region))
    again = view.fetched
    view.render(region)
    assert view.fetched == again, "tiles that were read are kept"


def test_the_command_reads_it_and_prints_what_it_fetched(store, folder, smartsplat, tmp_path):
    environment = os.environ | store.environment | {"CUDA_VISIBLE_DEVICES": ""}
    output = tmp_path / "region.png"
    done = smartsplat("render", URL, output, "--region", "0:50,0:60", env=environment)
    assert done.returncode == 0, done.stderr
    assert np.asarray(Image.open(output)).shape == (50, 60, 3)
    assert "fetched in" in done.stderr
    assert smartsplat("verify", URL, env=environment).returncode == 0
    assert '"complete": true' in smartsplat("info", URL, "--json", env=environment).stdout


@pytest.mark.parametrize("failure", ["500", "cut", "stall"])
def test_what_fails_for_a_moment_is_tried_again(store, folder, failure):
    store.fails = lambda number, method, path: failure if number % 2 and method == "GET" else None
    np.testing.assert_array_equal(open_scene(URL)[:50, :50], open_scene(folder)[:50, :50])


def test_a_store_that_stays_away_is_no_damage(store, monkeypatch):
    view = open_scene(URL)
    monkeypatch.setenv("SMARTSPLAT_RETRY_SECONDS", "0.5")
    remote.store_at.cache_clear()
    late = open_scene(URL)
    store.fails = lambda number, method, path: "500"
    with pytest.raises(StoreUnavailable, match="the store does not answer"):
        late.render(Region(y0=0, y1=10, x0=0, x1=10))
    with pytest.raises(StoreUnavailable):
        open_scene(URL)
    assert view.shape == (427, 640, 3)


def test_damage_and_absence_are_told(store, folder):
    with pytest.raises(StoreError, match="no such scene"):
        open_scene(f"s3://{BUCKET}/scenes/none.zarr")
    bucket = from_url(f"s3://{BUCKET}")
    shard = next(file for file in (folder / "gaussians").iterdir() if file.name != "zarr.json")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    obstore.put(bucket, f"scenes/photo.zarr/gaussians/{shard.name}", bytes(data))
    assert not verify(folder_at(URL))["sound"]
    obstore.put(bucket, "scenes/photo.zarr/zarr.json", b"{}")
    with pytest.raises(StoreError, match=r"not a scene|damaged"):
        open_scene(URL)


def test_it_can_only_be_read(store):
    with pytest.raises(StoreError, match="can only be read; write to a folder"):
        local_folder(folder_at(URL))
    with pytest.raises(StoreError, match="can only be read"):
        Scene.open(folder_at(URL), writable=True)
