"""The `smartsplat` command. Thin: it turns words into calls, and results into words.

Heavy imports wait inside the commands, so that ``smartsplat --help`` does not pay for them.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from smartsplat.errors import (
    ConfigError,
    SinkError,
    SmartsplatError,
    SourceError,
    SourceUnavailable,
    StoreError,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from flows.archive import Archive
    from pipeline.jobs import FailurePolicy
    from pipeline.plan import Resources
    from pipeline.progress import Progress
    from smartsplat.config import SceneConfig

FAILED, BAD_INPUT = 1, 2


@dataclass
class _Logs:
    level: str = "info"
    as_json: bool = False


_LOGS = _Logs()  # as the options before the command said

app = typer.Typer(
    name="smartsplat",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

bench = typer.Typer(name="bench", help="Measure the method, the presets and the engine.", no_args_is_help=True)
app.add_typer(bench)

SourceArgument = Annotated[str, typer.Argument(help="Image (TIFF, PNG, JPEG, ...): file or URL.", metavar="SOURCE")]
ArchiveArgument = Annotated[str, typer.Argument(help="Folder, pattern, list, STAC file or URL.", metavar="ARCHIVE")]
DestinationArgument = Annotated[Path, typer.Argument(help="Folder of the scenes.", metavar="DEST")]
AtOnce = Annotated[int, typer.Option("--scenes", help="Scenes at once; they share workers and memory.")]
Asset = Annotated[str | None, typer.Option(help="Which asset of each STAC item is its image.")]
SceneArgument = Annotated[str, typer.Argument(help="Scene: a folder, or to read a URL.", metavar="SCENE")]
Ratio = Annotated[float | None, typer.Option(help="Raw bytes over bytes on disk: a promise.  [default: 100]")]
Bytes = Annotated[str | None, typer.Option("--bytes", help="Most bytes on disk, e.g. 500K, instead of a ratio.")]
Bpp = Annotated[float | None, typer.Option("--bpp", help="Most bits on disk for each pixel, instead of a ratio.")]
Psnr = Annotated[float | None, typer.Option("--psnr", help="dB to reach in as few bytes as it takes, not a ratio.")]
Count = Annotated[int | None, typer.Option("--gaussians", help="Number of Gaussians, instead of a ratio.")]
Preset = Annotated[str, typer.Option(help="draft, standard or best (paper: the published recipe).")]
Tile = Annotated[int | None, typer.Option(help="Side of a tile, px.  [default: 512]")]
Halo = Annotated[int | None, typer.Option(help="Context around a tile, px.  [default: an eighth of the tile, <= 64]")]
Seed = Annotated[int, typer.Option(help="Of the random sampling.")]
ExecutorName = Annotated[str, typer.Option("--executor", help="serial or dask.  [default: what suits the scene]")]
Workers = Annotated[int | None, typer.Option(help="Parallel jobs.  [default: one per core]")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler, e.g. tcp://127.0.0.1:8786.")]
Memory = Annotated[str | None, typer.Option(help="Most memory to take in all, e.g. 4GiB.")]
Engine = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
MaxFailures = Annotated[int | None, typer.Option(help="Failed jobs that stop a stage at once.  [default: no limit]")]
OnFailure = Annotated[
    str, typer.Option(help="stop: end the stage, to be resumed; fallback: solve a failed tile's colors only.")
]
FitTimeout = Annotated[float | None, typer.Option(help="Longest that one visit to a tile may take, s.")]
Plot = Annotated[Path | None, typer.Option(help="PNG file to write.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else, on standard output.")]


@app.command(name="compress")
def compress_command(
    source: SourceArgument,
    scene: SceneArgument,
    ratio: Ratio = None,
    max_bytes: Bytes = None,
    bits_per_pixel: Bpp = None,
    psnr: Psnr = None,
    gaussians: Count = None,
    preset: Preset = "standard",
    tile: Tile = None,
    halo: Halo = None,
    seed: Seed = 0,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    scheduler: Scheduler = None,
    memory: Memory = None,
    engine: Engine = "auto",
    max_failures: MaxFailures = None,
    on_failure: OnFailure = "stop",
    fit_timeout: FitTimeout = None,
    keep_work: Annotated[bool, typer.Option("--keep-work", help="Keep staged pixels and working state.")] = False,
    flow: Annotated[bool, typer.Option("--flow", help="Run as a Prefect flow; no server needed.")] = False,
    as_json: Json = False,
) -> None:
    """Compress SOURCE into SCENE. An unfinished scene is resumed, a finished one left alone."""
    with _exit_codes():
        config = _config(
            preset,
            ratio=ratio,
            max_bytes=max_bytes,
            bits_per_pixel=bits_per_pixel,
            psnr=psnr,
            gaussians=gaussians,
            tile=tile,
            halo=halo,
            seed=seed,
        )
        resources = _resources(executor, workers=workers, scheduler=scheduler, memory=memory, engine=engine)
        policy = _policy(on_failure, most=max_failures, fit_seconds=fit_timeout)
        arguments: dict[str, Any] = {"config": config, "resources": resources, "policy": policy, "keep_work": keep_work}
        folder = _scene_folder(scene)
        if flow:
            from flows.compress import run_flow

            report = run_flow(source, folder, **arguments)
        else:
            from pipeline.compress import compress

            report = compress(source, folder, **arguments, progress=_progress()).to_dict()
        if as_json:
            _print_json(report)
            return
        from flows.console import print_report

        print_report(report)


@app.command(name="archive")
def archive_command(
    archive: ArchiveArgument,
    destination: DestinationArgument,
    ratio: Ratio = None,
    max_bytes: Bytes = None,
    bits_per_pixel: Bpp = None,
    psnr: Psnr = None,
    preset: Preset = "standard",
    tile: Tile = None,
    halo: Halo = None,
    seed: Seed = 0,
    at_once: AtOnce = 1,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    scheduler: Scheduler = None,
    memory: Memory = None,
    engine: Engine = "auto",
    max_failures: MaxFailures = None,
    on_failure: OnFailure = "stop",
    fit_timeout: FitTimeout = None,
    asset: Asset = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Take only those that failed according to DEST/report.json.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Compress every image of ARCHIVE into a scene in DEST. Finished scenes are skipped, unfinished ones resumed.

    ARCHIVE is a folder, a pattern in quotes, a list (.txt, .csv, .jsonl) or a STAC item collection (.json). A scene
    that fails does not keep the others from being done. DEST/report.html and DEST/report.json say what came of each.
    """
    with _exit_codes():
        from flows import archive as archives

        config = _config(
            preset,
            ratio=ratio,
            max_bytes=max_bytes,
            bits_per_pixel=bits_per_pixel,
            psnr=psnr,
            tile=tile,
            halo=halo,
            seed=seed,
        )
        settings = archives.ArchiveSettings(
            config=config,
            resources=_resources(executor, workers=workers, scheduler=scheduler, memory=memory, engine=engine),
            policy=_policy(on_failure, most=max_failures, fit_seconds=fit_timeout),
            at_once=at_once,
            log_level=_LOGS.level,
            log_json=_LOGS.as_json,
        )
        found = archives.scenes_of(archive, destination, settings, asset=asset, retry_failed=retry_failed)
        if dry_run:
            _print_outlook(archives.outlook(found, settings), as_json=as_json)
            return
        work = archives.Archive(destination, found, settings, progress=_progress())
        try:
            work.run()
        finally:
            _print_archive(work, as_json=as_json)


@app.command()
def schedule(
    archive: ArchiveArgument,
    destination: DestinationArgument,
    cron: Annotated[str, typer.Option(help='When: minute, hour, day, month, weekday, e.g. "0 3 * * *".')],
    timezone: Annotated[str, typer.Option(help="By whose clock, e.g. Europe/Berlin.")] = "UTC",
    ratio: Ratio = None,
    psnr: Psnr = None,
    preset: Preset = "standard",
    at_once: AtOnce = 1,
    workers: Workers = None,
    memory: Memory = None,
    on_failure: OnFailure = "stop",
    asset: Asset = None,
) -> None:
    """Compress ARCHIVE into DEST whenever the clock says so, by a Prefect server, as long as this runs."""
    with _exit_codes():
        _config(preset, ratio=ratio, psnr=psnr)
        _policy(on_failure, most=None, fit_seconds=None)
        _resources("auto", workers=workers, scheduler=None, memory=memory, engine="auto")
        from flows.deploy import serve_archive
        from flows.listing import list_images

        list_images(archive, leave_out=destination, asset=asset)
        parameters = {
            "ratio": ratio,
            "psnr": psnr,
            "preset": preset,
            "scenes_at_once": at_once,
            "workers": workers,
            "memory": memory,
            "on_failure": on_failure,
            "asset": asset,
        }
        serve_archive(archive, destination, cron=cron, timezone=timezone, parameters=parameters)


@app.command()
def plan(
    source: SourceArgument,
    ratio: Ratio = None,
    max_bytes: Bytes = None,
    bits_per_pixel: Bpp = None,
    psnr: Psnr = None,
    gaussians: Count = None,
    preset: Preset = "standard",
    tile: Tile = None,
    halo: Halo = None,
    seed: Seed = 0,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    scheduler: Scheduler = None,
    memory: Memory = None,
    engine: Engine = "auto",
    as_json: Json = False,
) -> None:
    """Show what compressing SOURCE would do: tiles, counts, phases, memory. Writes nothing."""
    with _exit_codes():
        config = _config(
            preset,
            ratio=ratio,
            max_bytes=max_bytes,
            bits_per_pixel=bits_per_pixel,
            psnr=psnr,
            gaussians=gaussians,
            tile=tile,
            halo=halo,
            seed=seed,
        )
        resources = _resources(executor, workers=workers, scheduler=scheduler, memory=memory, engine=engine)
        from pipeline.compress import count_for_psnr, usable_cores
        from pipeline.plan import plan_scene
        from smartsplat.render import resolve_engine
        from storage.source import read_info

        resolve_engine(engine)
        image, count = read_info(source), None
        if config.psnr is not None:
            count = count_for_psnr(image, config, resources=resources, progress=_progress())
        planned = plan_scene(image, config, resources=resources, cores=usable_cores(), count=count).to_dict()
        _print_values("plan", planned, as_json=as_json)


@app.command()
def info(scene: SceneArgument, as_json: Json = False) -> None:
    """Show a scene's shape, grid, counts, bytes, ratios and stored quality."""
    with _exit_codes():
        from pipeline.tile_quality import extremes
        from storage.remote_scene import folder_at
        from storage.scene import Scene

        opened = Scene.open(folder_at(scene))
        manifest = opened.manifest
        values: dict[str, Any] = {
            "scene": str(scene),
            "complete": manifest.complete,
            "source": manifest.source_name,
            "shape": list(manifest.shape),
            "dtype": manifest.dtype,
            "tile": manifest.grid.tile,
            "halo": manifest.grid.halo,
            "tiles": list(manifest.grid.shape),
            "gaussians": manifest.gaussians,
            "raw_bytes": manifest.raw_bytes,
            "bytes": opened.nbytes,
            "nominal_ratio": manifest.config.nominal_ratio,
            "measured_ratio": opened.measured_ratio if manifest.complete else None,
            "quality": manifest.quality,
            "degraded": list(manifest.degraded),
            "tile_quality": extremes(opened.tile_psnr()) if manifest.complete else None,
            "digest": manifest.digest,
        }
        _print_values("scene", values, as_json=as_json)


@app.command()
def status(
    scene: SceneArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again until the scene is complete.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks, 0.1 or more.", min=0.1)] = 5.0,
    as_json: Json = False,
) -> None:
    """Show how far a scene is, how fast its run goes, and which tiles are done, failed and missing."""
    with _exit_codes():
        from flows.watch import show_status, watch_status

        if not watch:
            show_status(_scene_folder(scene), as_json=as_json)
            return
        try:
            watch_status(_scene_folder(scene), every=every, as_json=as_json)
        except KeyboardInterrupt:  # an ordinary end, but the scene is not complete
            raise typer.Exit(FAILED) from None


@app.command()
def render(
    scene: SceneArgument,
    output: Annotated[Path, typer.Argument(help="Image to write: .tif, .png, .jpg or .webp.", metavar="OUTPUT")],
    region: Annotated[str | None, typer.Option(help="Y0:Y1,X0:X1 in px of the scene.  [default: all]")] = None,
    scale: Annotated[float, typer.Option(help="Output pixels per scene pixel, 1/64 to 64.")] = 1.0,
    engine: Engine = "auto",
) -> None:
    """Write SCENE, or a region of it at any zoom, to the image OUTPUT."""
    with _exit_codes():
        from pipeline.decode import open_scene
        from pipeline.export import export
        from smartsplat.geometry import Region

        where = None if region is None else Region.parse(region)
        view = open_scene(scene, engine=engine)
        written = export(view, output, region=where, scale=scale, progress=_progress())
        print(f"{output}: {written.height} x {written.width} px{_fetched_text(view.fetched)}", file=sys.stderr)


@app.command()
def evaluate(
    scene: SceneArgument,
    source: SourceArgument,
    quality_map: Annotated[
        Path | None, typer.Option("--map", help="Image to write: the PSNR of each tile, as colors.")
    ] = None,
    engine: Engine = "auto",
    as_json: Json = False,
) -> None:
    """Score SCENE against the image it was made from: PSNR, SSIM, MS-SSIM, the worst and best tile, size."""
    with _exit_codes():
        from pipeline.compress import usable_cores
        from pipeline.decode import open_scene
        from pipeline.evaluate import measure, score_dict
        from storage.source import read_info

        if quality_map is not None:
            from flows.plots import check_map

            check_map(quality_map)
        view = open_scene(scene, engine=engine)
        score = measure(view, read_info(source), threads=usable_cores(), progress=_progress())
        values = score_dict(view, score)
        if quality_map is not None:
            from flows.console import quality_text
            from flows.plots import plot_tile_psnr
            from storage.remote_scene import folder_at

            title = f"{folder_at(scene).name}, PSNR {quality_text(values['psnr'], decimals=2, unit=' dB')}"
            plot_tile_psnr(score.tile_psnr, quality_map, grid=view.manifest.grid, title=title)
        _print_values("quality", values, as_json=as_json)


@app.command()
def verify(scene: SceneArgument, as_json: Json = False) -> None:
    """Check every checksum of SCENE, and that every tile decodes."""
    with _exit_codes():
        from pipeline.evaluate import verify as check
        from storage.remote_scene import folder_at

        found = check(folder_at(scene), progress=_progress())
        if as_json:
            _print_json(found)
        elif found["sound"]:
            _print_rows("sound", [(name, str(found[name])) for name in ("tiles", "gaussians", "bytes")])
        if not found["sound"]:
            first = next(iter(found["damaged"].values()))
            raise StoreError(f"{len(found['damaged'])} of {found['tiles']} tiles are damaged; first: {first}")


@bench.command(name="ablation")
def bench_ablation(
    image: Annotated[Path, typer.Argument(help="Image file.", metavar="IMAGE")],
    ratio: Annotated[float, typer.Option(help="Stands for the published number of Gaussians at it.")] = 50.0,
    gaussians: Count = None,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Switch the method's parts off, one by one, and show what each is worth."""
    with _exit_codes():
        from flows import bench as benches
        from smartsplat.budget import gaussian_count
        from storage.source import read_info

        resources = _resources(executor, workers=workers, scheduler=None, memory=None, engine="auto")
        info = read_info(image)
        count = gaussians or gaussian_count(info.height, info.width, ratio)
        rows = benches.ablation(image, count=count, resources=resources, seed=seed, progress=_progress())
        if plot is not None:
            benches.plot_ablation(rows, plot)
        if as_json:
            _print_json({"image": str(image), "gaussians": count, "variants": rows})
            return
        columns = ("variant", "psnr", "ssim", "ms_ssim", "seconds")
        _print_columns(f"{image}, {count} Gaussians", columns, rows)


@bench.command(name="quality")
def bench_quality(
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGES...")],
    counts: Annotated[str | None, typer.Option(help="Numbers of Gaussians, e.g. 5000,10000.")] = None,
    ratios: Annotated[str | None, typer.Option(help="Each stands for the published number of Gaussians at it.")] = None,
    presets: Annotated[str, typer.Option(help="To compare, e.g. standard,paper.")] = "standard",
    executor: ExecutorName = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file to write, complete after every fit.")] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Fit IMAGES with each preset, and show PSNR, SSIM, MS-SSIM and seconds. Nothing is quantised."""
    with _exit_codes():
        from flows import bench as benches
        from flows.settings import parse_numbers

        found: list[dict[str, Any]] = []
        resources = _resources(executor, workers=workers, scheduler=None, memory=None, engine="auto")
        for row in benches.quality(
            images,
            counts=[int(value) for value in parse_numbers(counts)],
            ratios=parse_numbers(ratios) or ([] if counts else [50.0]),
            presets=presets.split(","),
            resources=resources,
            seed=seed,
        ):
            found.append(row)
            print(f"{row['image']}, {row['preset']}, {row['gaussians']} Gaussians: {row['psnr']} dB", file=sys.stderr)
            if output is not None:
                benches.write_json(output, {"fits": found, "means": benches.summary(found)})
        if plot is not None:
            benches.plot_quality(found, plot)
        if as_json:
            _print_json({"fits": found, "means": benches.summary(found)})
            return
        columns = ("preset", "at", "images", "psnr", "ssim", "ms_ssim", "seconds", "seconds_per_megapixel")
        _print_columns("means over the images", columns, benches.summary(found))


@bench.command(name="tiling")
def bench_tiling(
    image: Annotated[Path, typer.Argument(help="Image file, small enough for one tile.", metavar="IMAGE")],
    ratio: Annotated[float, typer.Option(help="Stands for the published number of Gaussians at it.")] = 50.0,
    gaussians: Count = None,
    tiles: Annotated[str, typer.Option(help="Sides of a tile to compare, px.")] = "512,1024",
    halos: Annotated[str, typer.Option(help="Halos to compare, px.")] = "64",
    preset: Preset = "standard",
    executor: ExecutorName = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit IMAGE in tiles and as one tile, and show what tiling costs in all and where tiles meet."""
    with _exit_codes():
        from flows import bench_scale
        from flows.settings import parse_numbers
        from smartsplat.budget import gaussian_count
        from storage.source import read_info

        info = read_info(image)
        count = gaussians or gaussian_count(info.height, info.width, ratio)
        rows = bench_scale.tiling(
            image,
            count=count,
            tiles=[int(value) for value in parse_numbers(tiles)],
            halos=[int(value) for value in parse_numbers(halos)],
            preset=preset,
            resources=_resources(executor, workers=workers, scheduler=None, memory=None, engine="auto"),
            seed=seed,
            progress=_progress(),
        )
        if as_json:
            _print_json({"image": str(image), "gaussians": count, "fits": rows})
            return
        columns = ("tile", "halo", "psnr", "gain", "seam_psnr", "seam_gain", "seconds")
        _print_columns(f"{image}, {count} Gaussians; gains over one tile, dB", columns, rows)


@bench.command(name="pipeline")
def bench_pipeline(
    image: Annotated[Path, typer.Argument(help="Image file.", metavar="IMAGE")],
    ratio: Ratio = None,
    gaussians: Count = None,
    preset: Preset = "standard",
    executor: ExecutorName = "auto",
    workers: Workers = None,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Compress IMAGE into a scratch folder, and show how fast each stage is beside the tool it rests on."""
    with _exit_codes():
        from flows import bench_scale

        rows = bench_scale.pipeline(
            image,
            config=_config(preset, ratio=ratio, gaussians=gaussians, tile=None, halo=None, seed=0),
            resources=_resources(executor, workers=workers, scheduler=None, memory=memory, engine="auto"),
            progress=_progress(),
        )
        if as_json:
            _print_json({"image": str(image), "stages": rows})
            return
        columns = ("stage", "seconds", "rate", "unit", "raw", "share", "idle", "workers")
        _print_columns(f"{image}; raw: the tool alone; idle: share of time without a job", columns, rows)


@bench.command(name="codec")
def bench_codec_command(
    images: Annotated[list[Path], typer.Argument(help="8-bit images of three bands.", metavar="IMAGES...")],
    ratios: Annotated[str | None, typer.Option(help="To compress at.  [default: 0.05 to 0.4 bits per pixel]")] = None,
    halve: Annotated[bool, typer.Option("--halve", help="Use means of 2 x 2 px: the marks of JPEG go.")] = False,
    against: Annotated[str | None, typer.Option(help="Codecs to compare with, e.g. JPEG,WebP.  [default: all]")] = None,
    preset: Preset = "standard",
    executor: ExecutorName = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option(help="Folder for codec.json and a plot for each image.")] = None,
    as_json: Json = False,
) -> None:
    """Compress IMAGES, and show what that takes and is worth beside JPEG, WebP, JPEG 2000, AVIF and JPEG XL.

    All sizes are those of whole files. BD rates are percent more bits at the same PSNR between 0.05 and 0.3 bits per
    pixel, negative where scenes are smaller; those of streams leave out what a scene takes beside its tiles' streams.
    """
    with _exit_codes():
        from flows import bench as benches
        from flows import bench_codec
        from flows.plots import new_figure
        from flows.settings import parse_numbers

        if output is not None:
            new_figure()  # refused now rather than after the first image
            output.mkdir(parents=True, exist_ok=True)
        wanted = parse_numbers(ratios) or list(bench_codec.RATIOS)
        found: dict[str, Any] = {"preset": preset, "seed": seed, "halved": halve, "ratios": wanted, "images": []}
        for image in bench_codec.codec(
            images,
            ratios=wanted,
            preset=preset,
            halve=halve,
            against=None if against is None else against.split(","),
            resources=_resources(executor, workers=workers, scheduler=None, memory=None, engine="auto"),
            seed=seed,
            progress=_progress(),
        ):
            found["images"].append(image)
            found["means"] = bench_codec.summary(found["images"])
            if output is not None:
                benches.write_json(output / "codec.json", found)
                bench_codec.plot_codec(image, output / f"{len(found['images'])}-{Path(image['image']).stem}.png")
            if not as_json:
                _print_codec(image)
        if as_json:
            _print_json(found)
        elif len(images) > 1:
            _print_against("means over the images", found["means"])


@bench.command(name="engine")
def bench_engine(as_json: Json = False) -> None:
    """Time the engine's operators, forward and backward, at 1 and 16 megapixels."""
    with _exit_codes():
        from flows import bench as benches

        rows = benches.engine()
        if as_json:
            _print_json({"operators": rows})
            return
        columns = ("side", "threads", "operator", "ms_per_megapixel", "ns_per_pair")
        _print_columns(f"{benches.PAIRS_A_PIXEL} pairs a pixel, medians", columns, rows)


@app.callback()
def options(
    log_level: Annotated[
        str, typer.Option(help="Least of what is logged: debug, info, warning or error.", envvar="SMARTSPLAT_LOG_LEVEL")
    ] = "info",
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log one JSON object a line.", envvar="SMARTSPLAT_LOG_JSON")
    ] = False,
) -> None:
    """Compress images too large for memory into 2D Gaussians, and render any region at any zoom."""
    from flows.logs import set_up_logs

    with _exit_codes():
        set_up_logs(log_level, as_json=log_json)
    _LOGS.level, _LOGS.as_json = log_level, log_json


def main() -> None:
    """Run the command."""
    signal.signal(signal.SIGTERM, _interrupt)
    app()


def _interrupt(_number: int, _frame: object) -> None:
    """Stop as after Ctrl-C: workers end, and what is done is kept."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def _exit_codes() -> Generator[None]:
    """End with one line and the right code: 2 for bad usage or input, 1 for work that failed."""
    try:
        yield
    except (SourceUnavailable, StoreUnavailable) as error:
        _fail(error, FAILED)
    except (ConfigError, SourceError, StoreError, SinkError) as error:
        _fail(error, BAD_INPUT)
    except SmartsplatError as error:
        _fail(error, FAILED)
    except KeyboardInterrupt:
        print("smartsplat: interrupted; run the same command again to resume", file=sys.stderr)
        raise typer.Exit(FAILED) from None


def _fail(error: SmartsplatError, code: int) -> None:
    print(f"smartsplat: {' '.join(str(error).split())}", file=sys.stderr)
    raise typer.Exit(code) from None


def _scene_folder(scene: str) -> Path:
    from storage.remote_scene import folder_at, local_folder

    return local_folder(folder_at(scene))


def _fetched_text(fetched: tuple[int, int] | None) -> str:
    from flows.console import size_text

    return "" if fetched is None else f" from {size_text(fetched[0])}, fetched in {fetched[1]} requests"


def _config(preset: str, *, max_bytes: str | None = None, **settings: Any) -> SceneConfig:
    from flows.settings import parse_bytes, scene_config

    return scene_config(preset, max_bytes=None if max_bytes is None else parse_bytes(max_bytes), **settings)


def _resources(
    executor: str, *, workers: int | None, scheduler: str | None, memory: str | None, engine: str
) -> Resources:
    from flows.settings import parse_bytes
    from pipeline.plan import Resources

    limit = None if memory is None else parse_bytes(memory)
    return Resources(executor=executor, workers=workers, scheduler=scheduler, memory=limit, engine=engine)


def _policy(on_failure: str, *, most: int | None, fit_seconds: float | None) -> FailurePolicy:
    from pipeline.jobs import FailurePolicy

    if on_failure not in ("stop", "fallback"):
        raise ConfigError(f"--on-failure {on_failure!r} is unknown; use stop or fallback")
    return FailurePolicy(most=most, fallback=on_failure == "fallback", fit_seconds=fit_seconds)


def _progress() -> Progress:
    from flows.console import progress_for

    return progress_for(sys.stderr)


def _print_outlook(outlook: dict[str, Any], *, as_json: bool) -> None:
    from flows.console import duration_text, size_text

    if as_json:
        _print_json(outlook)
        return
    for scene in outlook["scenes"]:  # lines, as there may be many, and a reason takes its room
        size = "" if scene["size"] is None else f"  {_value_text('size', scene['size'])}"
        print(f"{scene['plan']:<8}  {scene['name']}{size}{'  ' + scene['message'] if scene['message'] else ''}")
    totals = outlook["totals"]
    raw, time = size_text(totals["raw_bytes"]), duration_text(totals["seconds"])
    print(f"{totals['to_do']} to be done, {raw} of pixels, in about {time}")


def _print_archive(work: Archive, *, as_json: bool) -> None:
    from flows.archive import FAILED
    from flows.archive_report import HTML_NAME, line_of, totals, totals_rows

    if as_json:
        _print_json({"totals": totals(work.scenes), "scenes": [scene.to_dict() for scene in work.scenes]})
        return
    _print_rows(str(work.destination / HTML_NAME), totals_rows(work.scenes))
    for scene in work.scenes:
        if scene.state == FAILED:
            print(line_of(scene))


def _print_values(title: str, values: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print_json(values)
    else:
        _print_rows(title, [(name.replace("_", " "), _value_text(name, value)) for name, value in values.items()])


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    from flows.console import print_table

    print_table(title, rows)


def _print_columns(title: str, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    from flows.console import print_columns

    shown = [[_value_text(name, row[name]) for name in columns] for row in rows]
    print_columns(title, [name.replace("_", " ") for name in columns], shown)


def _print_codec(image: dict[str, Any]) -> None:
    title, fits = f"{image['image']}, {image['width']} x {image['height']} px", image["fits"]
    for ratio, why in image["refused"].items():
        print(f"ratio {ratio}: {why}", file=sys.stderr)
    if fits:
        columns = ("ratio", "bytes", "bits_per_pixel", "psnr", "ms_ssim", "quantisation_loss")
        _print_columns(f"{title}: scenes", columns, fits)
        columns = ("ratio", "over_nominal", "gaussians", "other_bytes", "fit_seconds", "added_share")
        _print_columns(f"{title}: costs, of time beside that of the fit", columns, fits)
        columns = ("ratio", "encode_rate", "decode_rate", "fullest_tile_ms")
        speeds = [row | {name: round(row[name]) for name in ("encode_rate", "decode_rate")} for row in fits]
        _print_columns(f"{title}: Gaussians a second, on one thread", columns, speeds)
        ratios = [f"{row['ratio']:g}" for row in fits]
        bits = [{"all": row["bits_per_gaussian"], **row["bits"]} for row in fits]
        quantities = [
            {"quantity": name, **{ratio: round(each[name], 2) for ratio, each in zip(ratios, bits, strict=True)}}
            for name in bits[0]
        ]
        _print_columns(f"{title}: bits a Gaussian, by ratio", ("quantity", *ratios), quantities)
    _print_against(title, image["against"])


def _print_against(title: str, rows: list[dict[str, Any]]) -> None:
    shown: list[dict[str, Any]] = []
    for row in rows:
        rates = {"bd_rate": row["bd_rate"], "streams": row["bd_rate_streams"]}
        percents = {name: None if value is None else round(value, 1) for name, value in rates.items()}
        gains = {bits: None if value is None else round(value, 2) for bits, value in row["gains"].items()}
        shown.append({"codec": row["codec"], **percents, **gains})
    _print_columns(f"{title}: BD rate in percent, and dB at the same bits per pixel", list(shown[0]), shown)


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, allow_nan=False))


def _value_text(name: str, value: Any) -> str:
    from flows.console import size_text

    if isinstance(value, dict):
        parts = cast("dict[str, Any]", value)
        return ", ".join(f"{key} {_value_text(f'{key} {name}', part)}" for key, part in parts.items())
    if isinstance(value, list):
        return " x ".join(map(str, cast("list[Any]", value)))
    if value is None:
        return "-"
    if name.endswith(("bytes", "budget", "memory")):
        return size_text(value)
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
