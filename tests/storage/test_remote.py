"""Images in a real S3 server: read in ranges, through failures, as if they were files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obstore
import pytest
from obstore.store import from_url
from PIL import Image
from sklearn.datasets import load_sample_images

from smartsplat.errors import ConfigError, SourceError, SourceUnavailable
from storage import remote
from storage.remote import ObjectFile, list_objects
from storage.source import read_info, read_strips
from tests.storage.stores import BUCKET, Proxy, s3_server

PHOTO = load_sample_images().images[0]


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture
def store(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The server, in the environment, without failures."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.fails = lambda number, method, path: None
    remote.store_at.cache_clear()
    return server


def put(name: str, data: bytes) -> str:
    obstore.put(from_url(f"s3://{BUCKET}"), name, data)
    return f"s3://{BUCKET}/{name}"


def encoded(kind: str, pixels: np.ndarray = PHOTO, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def read(url: str) -> np.ndarray:
    return np.concatenate([strip for _, strip in read_strips(read_info(url), strip_height=100)])


@pytest.mark.parametrize(
    ("kind", "options"), [("png", {}), ("tiff", {}), ("tiff", {"compression": "tiff_lzw"}), ("jpeg", {})]
)
def test_an_object_is_read_as_a_file_of_its_bytes(store, tmp_path, kind, options):
    data = encoded(kind, **options)
    (tmp_path / "file").write_bytes(data)
    url = put(f"a.{kind}", data)
    mine, other = read_info(url), read_info(tmp_path / "file")
    assert (mine.shape, mine.dtype, mine.fingerprint) == (other.shape, other.dtype, other.fingerprint)
    assert mine.path == url
    np.testing.assert_array_equal(read(url), read(str(tmp_path / "file")))


def test_a_large_image_is_fetched_once_and_not_kept(store, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(remote, "_BLOCKS_KEPT", 4)
    data = encoded("tiff", np.random.default_rng(0).integers(0, 255, (1500, 700, 3), np.uint8))
    info = read_info(put("large.tif", data))
    before = store.bytes_sent
    for _ in read_strips(info, strip_height=64):
        pass
    fingerprint = 2 << 20
    assert store.bytes_sent - before <= len(data) + fingerprint + 10 * (1 << 16)


def test_bytes_are_those_of_the_object_however_they_are_read(store, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 7)
    monkeypatch.setattr(remote, "_BLOCKS_KEPT", 2)
    data = bytes(range(100))
    with ObjectFile(put("bytes", data)) as file:
        assert file.size == 100
        assert file.read(10) == data[:10]
        assert file.tell() == 10
        assert file.seek(-3, 2) == 97
        assert file.read() == data[97:]
        assert file.read(5) == b""
        assert file.seek(0) == 0
        assert file.read() == data
        file.seek(6)
        assert file.read(1) + file.read(1) == data[6:8]


@pytest.mark.parametrize("failure", ["500", "cut", "stall"])
def test_what_fails_for_a_moment_is_tried_again(store, failure):
    url = put("a.png", encoded("png"))
    store.fails = lambda number, method, path: failure if number % 2 and method == "GET" else None
    np.testing.assert_array_equal(read(url), PHOTO)


def test_a_store_that_stays_away_is_not_a_damaged_image(store, monkeypatch):
    url = put("a.png", encoded("png", np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)))
    monkeypatch.setenv("SMARTSPLAT_RETRY_SECONDS", "1")
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 1 << 18)
    remote.store_at.cache_clear()
    info = read_info(url)
    strips = read_strips(info, strip_height=50)
    next(strips)
    store.fails = lambda number, method, path: "500"
    with pytest.raises(SourceUnavailable, match=r"images/a.png: the store does not answer .*; run the same command"):
        list(strips)
    with pytest.raises(SourceUnavailable):
        read_info(url)


def test_what_is_not_there_or_no_image_says_so(store):
    with pytest.raises(SourceError, match=r"none\.png: no such object; check its name"):
        read_info(f"s3://{BUCKET}/none.png")
    with pytest.raises(SourceError, match="known format"):
        read_info(put("bad.png", b"no image at all"))
    with pytest.raises(SourceError, match="the file is empty"):
        read_info(put("empty.png", b""))
    data = encoded("png")
    url = put("half.png", data[: len(data) // 2])
    with pytest.raises(SourceError, match="truncated or damaged"):
        read(url)
    with pytest.raises(ConfigError, match="ftp:// is no store that is known"):
        read_info("ftp://host/a.png")


def test_an_object_that_changes_is_not_read_on(store):
    url = put("changes.png", encoded("png"))
    info = read_info(url)
    put("changes.png", encoded("png", PHOTO[::-1].copy()))
    with pytest.raises(SourceError, match="has changed since it was first opened"):
        next(read_strips(info, strip_height=10))


def test_files_by_url_and_objects_below_a_prefix(store, tmp_path: Path):
    (tmp_path / "a b.png").write_bytes(encoded("png"))
    np.testing.assert_array_equal(read((tmp_path / "a b.png").as_uri()), PHOTO)
    urls = [put(name, b"x") for name in ("below/1.png", "below/deeper/2.png", "beside/3.png")]
    assert sorted(list_objects(f"s3://{BUCKET}/below/")) == urls[:2]
