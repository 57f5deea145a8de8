"""``smartsplat bench codec``: scenes beside JPEG, WebP, JPEG 2000, AVIF and JPEG XL, all at their real bytes."""

from __future__ import annotations

import math
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.bench import known_mean, median_seconds
from flows.plots import new_figure
from flows.settings import scene_config
from pipeline.compress import prepare, steps
from pipeline.evaluate import quality_dict, score_sweep
from pipeline.plan import Resources
from pipeline.progress import NoProgress, Progress
from pipeline.run import Run
from smartsplat.codec import Steps, decode_tile, encode_tile
from smartsplat.codec.quantize import QuantizedGaussians, quantize
from smartsplat.codec.tile import encode_quantized
from smartsplat.config import SceneConfig
from smartsplat.errors import BudgetError, ConfigError
from smartsplat.metrics import bits_per_pixel, score
from storage.pixels import STRIP_HEIGHT
from storage.scene import Scene
from storage.sink import write_image
from storage.source import load_vips, read_info, read_strips

RATIOS = (480.0, 320.0, 240.0, 160.0, 120.0, 96.0, 60.0)
"""Of 24-bit images: 0.05 to 0.4 bits per pixel."""

BITS = (0.05, 0.3)
"""Bits per pixel between which codecs are compared."""

AT_BITS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Bits per pixel at which PSNRs are compared."""

Pixels = NDArray[np.uint8]
Curve = Sequence[tuple[float, float]]
"""Bits per pixel and PSNR (dB) of some results, in any order."""

_OURS = "smartsplat"
_WARM_UP_GAUSSIANS = 50
_MARGIN = 1.2  # how far beyond our bits others are swept, so that their curves cover ours
_APART = 1.12  # least factor between the bytes of two results of a sweep: scoring takes time
_AVIF_SPEED = 4  # libavif's own default is 6; slower ones gain a few percent, for many times the time


def codec(
    sources: Sequence[Path],
    *,
    ratios: Sequence[float] = RATIOS,
    preset: str = "standard",
    halve: bool = False,
    against: Sequence[str] | None = None,
    resources: Resources,
    seed: int = 0,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield what each image comes to, as soon as it is known: our scenes, other codecs' files, and how they compare.

    Parameters
    ----------
    sources
        8-bit images of three bands.
    halve
        Use means of 2 x 2 px instead: the marks of a light JPEG compression go.
    against
        Names of the codecs to compare with; None = all, which takes many minutes on an image of many megapixels.

    Yields
    ------
    ``image``, ``height``, ``width``; ``fits``, a row for each ratio (see `compressed`); ``refused``, why there is none
    for others; ``references``, for each codec its results over bytes; ``against``, a row for each codec (see
    `compared`).

    Raises
    ------
    ConfigError
        If an image is of another kind, a codec is unknown, or imagecodecs is not installed.
    SourceError
        If one cannot be read.
    """
    codecs = _codecs()
    for name in against or ():
        if name not in codecs:
            raise ConfigError(f"codec {name!r} is unknown; use {', '.join(codecs)}")
    codecs = {name: each for name, each in codecs.items() if against is None or name in against}
    for source in sources:
        info = read_info(source)
        if (info.dtype, info.bands) != ("uint8", 3):
            raise ConfigError(f"{source}: {info.bands} bands of {info.dtype}; bench codec takes three of uint8")
    with tempfile.TemporaryDirectory(prefix="smartsplat-bench-", dir=scratch) as folder:
        for number, source in enumerate(sources):
            pixels, path = _read(source), source
            if halve:
                pixels, path = halved(pixels), Path(folder) / f"{source.stem}.png"
                height, width, bands = pixels.shape
                write_image(path, [pixels], height=height, width=width, bands=bands, dtype="uint8")
            if number == 0:  # a process's first run loads libraries and compiled code too
                warm_up = scene_config("draft", gaussians=_WARM_UP_GAUSSIANS, seed=seed)
                compressed(path, Path(folder), config=warm_up, resources=resources)
            fits, refused = list[dict[str, Any]](), dict[str, str]()
            for ratio in ratios:
                config = scene_config(preset, ratio=ratio, seed=seed)
                try:
                    fits.append(compressed(path, Path(folder), config=config, resources=resources, progress=progress))
                except BudgetError as error:
                    refused[f"{ratio:g}"] = str(error)
            wanted = [8 * pixels.shape[2] / ratio for ratio in ratios]
            low, high = min(wanted) / _MARGIN, max(wanted) * _MARGIN
            references = {name: _results(each, pixels, low=low, high=high) for name, each in codecs.items()}
            yield {
                "image": source.name,
                "height": pixels.shape[0],
                "width": pixels.shape[1],
                "fits": fits,
                "refused": refused,
                "references": references,
                "against": [compared(fits, results, name=name) for name, results in references.items()],
            }


def _read(source: Path) -> Pixels:
    return np.concatenate([strip for _, strip in read_strips(read_info(source), strip_height=STRIP_HEIGHT)])


def halved(pixels: Pixels) -> Pixels:
    """Return the rounded means of 2 x 2 px; an odd last row or column is dropped.

    Examples
    --------
    >>> halved(np.array([[1, 2, 9], [3, 4, 9]], np.uint8)[..., None])[..., 0].tolist()
    [[3]]
    """
    rows, cols = pixels.shape[0] // 2, pixels.shape[1] // 2
    squares = pixels[: 2 * rows, : 2 * cols].reshape(rows, 2, cols, 2, -1)
    return ((squares.sum(axis=(1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8)


# --- Ours -------------------------------------------------------------------------------------------------------------


def compressed(
    source: Path, scratch: Path, *, config: SceneConfig, resources: Resources, progress: Progress | None = None
) -> dict[str, Any]:
    """Compress an image into a scene below `scratch`, which is deleted; return what it took and what it came to.

    Returns
    -------
    ``ratio``; ``bytes``, ``bits_per_pixel``; ``psnr``, ``ssim``, ``ms_ssim``; ``over_nominal``, the measured ratio
    over the one asked for; ``quantisation_loss``, PSNR of the fit as it was less that of the scene, dB;
    ``fit_seconds``, of sampling and fitting; ``added_seconds``, of settling, rate control and encoding, and
    ``added_share``, the same over those of the fit; and what `stream_values` returns.
    """
    seconds = {"fit": 0.0, "added": 0.0}
    unquantised: float | None = None
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        preparation = prepare(source, Path(folder) / "scene.zarr", config=config, resources=resources)
        progress = progress or NoProgress()
        with preparation.executor() as executor:
            for step in steps(preparation, executor, progress=progress):
                if step.name == "rate":  # the last moment: settling drops the fit as it was
                    run = Run(
                        scene=Scene.open(preparation.path),
                        first_plan=preparation.plan,
                        executor=executor,
                        progress=progress,
                        engine=resources.engine,
                    )
                    unquantised = quality_dict(score_sweep(run, preparation.plan.last_sweep))["psnr"]
                started = time.perf_counter()
                step.work()
                if step.stage in ("sample", "fit", "encode"):
                    added = step.stage == "encode" or step.name.startswith("settle")
                    seconds["added" if added else "fit"] += time.perf_counter() - started
        scene = Scene.open(preparation.path)
        quality, nominal = scene.manifest.quality or {}, config.nominal_ratio
        height, width, _ = scene.manifest.shape
        psnr = quality.get("psnr")
        return {
            "ratio": nominal,
            "bytes": scene.nbytes,
            "bits_per_pixel": bits_per_pixel(scene.nbytes, height, width),
            **quality,
            "over_nominal": None if nominal is None else scene.measured_ratio / nominal,
            "quantisation_loss": None if unquantised is None or psnr is None else unquantised - psnr,
            "fit_seconds": seconds["fit"],
            "added_seconds": seconds["added"],
            "added_share": seconds["added"] / seconds["fit"],
            **stream_values(scene),
        }


def stream_values(scene: Scene) -> dict[str, Any]:
    """Return what the streams of a scene's tiles take, and how fast they are coded, on one thread.

    Returns
    -------
    ``gaussians``; ``stream_bytes``, and ``other_bytes`` of the scene's files; ``bits_per_gaussian`` of the streams,
    and ``bits`` the same by quantity (``rest``: headers, and what ends a stream); ``encode_rate`` and ``decode_rate``,
    Gaussians a second; ``fullest_tile_ms``, to decode the tile with most Gaussians.
    """
    table, codec_steps = scene.tiles(), scene.steps
    counts = [int(table[tile.row, tile.col, 0]) for tile in scene.grid]
    tiles = [scene.read_tile(tile, count=count) for tile, count in zip(scene.grid, counts, strict=True)]
    bits: dict[str, float] = {}
    streams = [_stream(quantize(one, codec_steps), codec_steps, bits) for one in tiles]
    nbytes, total, most = sum(map(len, streams)), sum(counts), max(counts)
    bits["rest"] = 8 * nbytes - sum(bits.values())

    def decode(stream: bytes) -> object:
        return decode_tile(stream, codec_steps, bands=scene.bands, max_count=most)

    encoding, decoding, fullest = median_seconds(
        [
            lambda: [encode_tile(one, codec_steps) for one in tiles],
            lambda: [decode(stream) for stream in streams],
            lambda: decode(streams[counts.index(most)]),
        ]
    )
    return {
        "gaussians": total,
        "stream_bytes": nbytes,
        "other_bytes": scene.nbytes - nbytes,
        "bits_per_gaussian": 8 * nbytes / total,
        "bits": {quantity: amount / total for quantity, amount in bits.items()},
        "encode_rate": total / encoding,
        "decode_rate": total / decoding,
        "fullest_tile_ms": 1e3 * fullest,
    }


def _stream(quantized: QuantizedGaussians, codec_steps: Steps, bits: dict[str, float]) -> bytes:
    """Return the stream, having added the bits of each quantity, some of which come in parts."""
    before = 0.0

    def ended(quantity: str, written: float) -> None:
        nonlocal before
        bits[quantity] = bits.get(quantity, 0.0) + written - before
        before = written

    return encode_quantized(quantized, codec_steps, ended=ended)


# --- Other codecs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """An image codec.

    Parameters
    ----------
    variants
        Ways to encode an image at a setting; at each rate the best one counts.
    decode
        The way back.
    settings
        From the least bytes to the most.
    """

    variants: Sequence[Callable[[Pixels, float], bytes]]
    decode: Callable[[bytes], Pixels]
    settings: Sequence[float]


def _codecs() -> dict[str, Codec]:
    try:
        import imagecodecs
    except ImportError as error:
        raise ConfigError("bench codec needs imagecodecs: pip install 'smartsplat[bench]'") from error
    images: Any = imagecodecs
    whole = range(101)

    def avif(pixelformat: str) -> Codec:
        def encode(pixels: Pixels, level: float) -> bytes:
            return images.avif_encode(pixels, level=int(level), speed=_AVIF_SPEED, pixelformat=pixelformat)

        return Codec(variants=[encode], decode=images.avif_decode, settings=whole[::2])

    return {
        "JPEG": Codec(
            variants=[
                lambda pixels, quality: _jpeg(pixels, quality, subsampled=True),
                lambda pixels, quality: _jpeg(pixels, quality, subsampled=False),
            ],
            decode=images.jpeg8_decode,
            settings=whole[1:96],
        ),
        "WebP": Codec(
            variants=[lambda pixels, level: images.webp_encode(pixels, level=level, method=6, lossless=False)],
            decode=images.webp_decode,
            settings=whole[::2],
        ),
        "JPEG 2000": Codec(
            variants=[
                lambda pixels, psnr: images.jpeg2k_encode(pixels, level=psnr, codecformat="j2k", reversible=False)
            ],
            decode=images.jpeg2k_decode,
            settings=np.arange(15, 55, 0.5).tolist(),
        ),
        "AVIF 4:2:0": avif("420"),
        "AVIF 4:4:4": avif("444"),
        "JPEG XL": Codec(
            variants=[lambda pixels, distance: images.jpegxl_encode(pixels, distance=distance, effort=7)],
            decode=images.jpegxl_decode,
            settings=np.geomspace(25, 0.2, 50).tolist(),
        ),
    }


def _jpeg(pixels: Pixels, quality: float, *, subsampled: bool) -> bytes:
    """Return a JPEG file with Huffman tables of its own; progressive, unless that takes more: the pixels are the same.

    By libvips, as imagecodecs makes no progressive ones.
    """
    image = load_vips().Image.new_from_array(pixels)
    options = {"subsample_mode": "on" if subsampled else "off", "optimize_coding": True, "keep": "none"}
    files = [image.jpegsave_buffer(Q=int(quality), interlace=interlace, **options) for interlace in (True, False)]
    return min(files, key=len)


def _results(codec: Codec, pixels: Pixels, *, low: float, high: float) -> list[dict[str, Any]]:
    """Return what a codec comes to from `low` to `high` bits per pixel, in the order of its bytes."""
    sweeps = [_sweep(encode, codec, pixels, low=low, high=high) for encode in codec.variants]
    best = [
        row for number, sweep in enumerate(sweeps) for row in _not_beaten(sweep, sweeps[:number] + sweeps[number + 1 :])
    ]
    return sorted(best, key=lambda row: row["bytes"])


def _sweep(
    encode: Callable[[Pixels, float], bytes], codec: Codec, pixels: Pixels, *, low: float, high: float
) -> list[dict[str, Any]]:
    height, width = pixels.shape[:2]

    def bits_of(data: bytes) -> float:
        return bits_per_pixel(len(data), height, width)

    rows: list[dict[str, Any]] = []
    least = low
    first = bisect_left(codec.settings, low, key=lambda setting: bits_of(encode(pixels, setting)))
    for setting in codec.settings[first:]:
        data = bytes(encode(pixels, setting))
        if (bits := bits_of(data)) < least:
            continue
        quality = quality_dict(score(pixels, codec.decode(data), peak=255))
        rows.append({"setting": setting, "bytes": len(data), "bits_per_pixel": bits, **quality})
        if bits > high:
            break
        least = _APART * bits
    return rows


def _not_beaten(rows: list[dict[str, Any]], others: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows whose PSNR none of the others' curves reaches at the same bytes."""

    def beaten(row: dict[str, Any]) -> bool:
        found = [psnr_at(_curve(other), row["bits_per_pixel"]) for other in others]
        return any(psnr is not None and psnr > row["psnr"] for psnr in found)

    return [row for row in rows if not beaten(row)]


# --- Comparisons ------------------------------------------------------------------------------------------------------


def compared(fits: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]], *, name: str) -> dict[str, Any]:
    """Return how our scenes compare with the codec `name`.

    Returns
    -------
    ``codec``; ``bd_rate``, `bd_rate` in percent; ``bd_rate_streams``, the same counting the bytes of our tiles'
    streams only, as on an image so large that the rest does not show; ``gains``, at each of `AT_BITS` our PSNR less
    the codec's, dB. None where the curves do not reach.
    """
    fits = [row for row in fits if row["psnr"] is not None]
    ours, theirs = _curve(fits), _curve(results)
    streams = [(bits * row["stream_bytes"] / row["bytes"], psnr) for (bits, psnr), row in zip(ours, fits, strict=True)]
    gains: dict[str, float | None] = {}
    for bits in AT_BITS:
        mine, other = psnr_at(ours, bits), psnr_at(theirs, bits)
        gains[f"{bits:g}"] = None if mine is None or other is None else mine - other
    rates = [bd_rate(curve, theirs) for curve in (ours, streams)]
    percent = [None if rate is None else 100 * rate for rate in rates]
    return {"codec": name, "bd_rate": percent[0], "bd_rate_streams": percent[1], "gains": gains}


def bd_rate(curve: Curve, reference: Curve, *, within: tuple[float, float] = BITS) -> float | None:
    """Return how many more bits a curve takes than a reference for the same PSNR, in the mean, as a share.

    The logarithm of the bits is interpolated over PSNR by piecewise cubics that keep it rising (PCHIP), and averaged
    over the PSNRs that both reach at bits `within` these.

    Returns
    -------
    Negative where `curve` is better; None if no PSNR is in common.

    References
    ----------
    G. Bjøntegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001.

    Examples
    --------
    >>> reference = [(0.05, 28.0), (0.1, 30.0), (0.2, 32.5)]
    >>> round(bd_rate([(0.8 * bits, psnr) for bits, psnr in reference], reference), 6)
    -0.2
    """
    from scipy.interpolate import PchipInterpolator

    curves = [_rising(curve), _rising(reference)]
    if min(map(len, curves)) < 2:
        return None
    bounds = list[tuple[float, float]]()
    for bits, _ in (each.T for each in curves):
        ends = max(within[0], bits[0]), min(within[1], bits[-1])
        if ends[0] >= ends[1]:
            return None
        bounds.append(ends)
    low = max(_interpolated(each, ends[0]) for each, ends in zip(curves, bounds, strict=True))
    high = min(_interpolated(each, ends[1]) for each, ends in zip(curves, bounds, strict=True))
    if low >= high:
        return None
    ours, theirs = (
        float(PchipInterpolator(psnr, np.log(bits)).integrate(low, high)) for bits, psnr in (each.T for each in curves)
    )
    return math.exp((ours - theirs) / (high - low)) - 1


def psnr_at(curve: Curve, bits: float) -> float | None:
    """Return the PSNR of a curve at some bits per pixel, interpolated; None where it does not reach.

    Examples
    --------
    >>> round(psnr_at([(0.1, 30.0), (0.4, 34.0)], 0.2), 6), psnr_at([(0.1, 30.0), (0.4, 34.0)], 0.5)
    (32.0, None)
    """
    rising = _rising(curve)
    if len(rising) < 2 or not rising[0, 0] <= bits <= rising[-1, 0]:
        return None
    return _interpolated(rising, bits)


def _interpolated(rising: NDArray[np.float64], bits: float) -> float:
    from scipy.interpolate import PchipInterpolator

    return float(PchipInterpolator(np.log(rising[:, 0]), rising[:, 1])(math.log(bits)))


def _rising(curve: Curve) -> NDArray[np.float64]:
    """Return the points, ``(N, 2)``, whose PSNR no point with as few bits reaches."""
    kept: list[tuple[float, float]] = []
    for bits, psnr in sorted(curve, key=lambda point: (point[0], -point[1])):
        if not kept or psnr > kept[-1][1]:
            kept.append((bits, psnr))
    return np.array(kept, np.float64).reshape(-1, 2)


def _curve(rows: Sequence[dict[str, Any]]) -> Curve:
    return [(row["bits_per_pixel"], row["psnr"]) for row in rows if row["psnr"] is not None]


def summary(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the means over the images of how we compare with each codec, where it is known."""
    rows: list[dict[str, Any]] = []
    for members in zip(*(image["against"] for image in found), strict=True):
        rates = {name: known_mean([row[name] for row in members]) for name in ("bd_rate", "bd_rate_streams")}
        gains = {bits: known_mean([row["gains"][bits] for row in members]) for bits in members[0]["gains"]}
        rows.append({"codec": members[0]["codec"], **rates, "gains": gains})
    return rows


def plot_codec(image: dict[str, Any], path: Path) -> None:
    """Write a picture of PSNR and MS-SSIM over bits per pixel, a line for each codec."""
    figure = new_figure(figsize=(13, 6))
    figure.suptitle(f"{image['image']}, {image['width']} x {image['height']} px")
    for number, (name, label) in enumerate({"psnr": "PSNR, dB", "ms_ssim": "MS-SSIM"}.items()):
        axes = figure.add_subplot(1, 2, number + 1, xlabel="bits per pixel", ylabel=label)
        axes.grid(alpha=0.3)
        for codec, rows in {_OURS: image["fits"], **image["references"]}.items():
            points = sorted((row["bits_per_pixel"], row[name]) for row in rows if row[name] is not None)
            style = {"linewidth": 2.5, "color": "black", "zorder": 3} if codec == _OURS else {"alpha": 0.7}
            if points:
                axes.plot(*zip(*points, strict=True), ".-", label=codec, **style)
        axes.legend()
    figure.savefig(path, dpi=120)
