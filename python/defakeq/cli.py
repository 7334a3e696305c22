"""The command line of ``defakeq``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from defakeq import convert_cli
from defakeq.compress import cli as compression
from defakeq.options import NO_TORCH

# Heavy imports (torch, OpenCV) stay inside the commands, so that `info` and help are quick.

_Command = TypeVar("_Command", bound=Callable[..., Any])

_Model = Annotated[
    str, typer.Option(help="A detector file (.dfq), 'embedded', or package.module:function.")
]
_FloatModel = Annotated[
    str | None,
    typer.Option(help="What to compare with: a checkpoint, package.module:function, 'none'."),
]
_Builder = Annotated[
    str | None,
    typer.Option(help="A detector's name or package.module:function: the float module of a file."),
]

app = typer.Typer(
    name="defakeq",
    help="Compressed deepfake detectors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import defakeq_kernels

        typer.echo(f"defakeq {defakeq_kernels.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Compressed deepfake detectors."""


def _fail(message: object) -> typer.Exit:
    typer.echo(f"defakeq: {message}", err=True)
    return typer.Exit(2)


def _named_errors(command: _Command) -> _Command:
    """Turn the errors that name their cause into one line and exit code 2."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (ValueError, RuntimeError, ImportError, OSError) as error:
            # Typer's own exits and usage errors are RuntimeErrors in some versions.
            if isinstance(error, typer.Exit | typer.Abort):
                raise
            if isinstance(error, ImportError) and error.name == "torch":
                raise _fail(NO_TORCH) from error
            raise _fail(error) from error

    return run  # type: ignore[return-value]


def _quiet_opencv() -> None:
    """Keep OpenCV's and FFmpeg's own warnings out; unreadable files are named by us."""
    import os

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@app.command()
@_named_errors
def detect(
    paths: Annotated[
        list[Path], typer.Argument(help="Pictures, videos, or folders of them.", show_default=False)
    ],
    model: _Model = "embedded",
    builder: _Builder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    frames: Annotated[int, typer.Option(min=1, help="Frames to look at in a video.")] = 16,
) -> None:
    """Find faces and print the probability that each is forged.

    Exit code 1: some file could not be read; it is named and skipped.
    """
    _quiet_opencv()
    from defakeq.detect import scan_all

    failed = 0
    results = []
    for result in scan_all(paths, model, builder, frames):
        results.append(result)
        if result.error is not None:
            failed += 1
            typer.echo(f"defakeq: skipped: {result.error}", err=True)
        elif not as_json:
            _print_result(result)
    if as_json:
        document = {
            "model": model,
            "files": [result.to_dict() for result in results],
        }
        typer.echo(json.dumps(document, indent=2))
    if failed:
        raise typer.Exit(1)


def _print_result(result: Any) -> None:
    if result.probability is None:
        typer.echo(f"{result.path}: no face found  ({result.milliseconds:.0f} ms)")
        return
    typer.echo(
        f"{result.path}: probability of a forgery {result.probability:.3f}  "
        f"({result.milliseconds:.0f} ms)"
    )
    for face in result.faces:
        left, top, width, height = (round(value) for value in face.box)
        where = f"face {width}x{height} at {left},{top}"
        if face.frame is not None:
            where = f"frame {face.frame}, {where}"
        typer.echo(f"  {where}: {face.probability:.3f}  ({face.milliseconds:.2f} ms)")


@app.command()
@_named_errors
def watch(
    source: Annotated[str, typer.Argument(help="A film, or a camera's number.")],
    out: Annotated[Path | None, typer.Option(help="Annotated film to write, .avi or .mp4.")] = None,
    model: _Model = "embedded",
    builder: _Builder = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames at most.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Search faces in every so-many-th.")] = 1,
    window: Annotated[bool, typer.Option(help="Show the frames where a screen is.")] = True,
) -> None:
    """Draw faces, scores and the frame rate on a film or a camera's picture.

    Without a screen it writes an annotated film. Keys q and Escape end it.
    """
    _quiet_opencv()
    from defakeq import watch as module
    from defakeq.detect import Detector
    from defakeq.scorer import open_model

    shown = window and module.has_window()
    seen = module.watch(source, Detector(open_model(model, builder)), out, shown, frames, every)
    score = "no face" if seen.probability is None else f"{seen.probability:.3f}"
    typer.echo(
        f"{source}: {seen.frames} frames, {len(seen.scores)} with a face; probability of a forgery "
        f"{score}; {seen.rate:.1f} frames a second"
    )
    if out is not None:
        typer.echo(f"wrote {out}")


@app.command()
@_named_errors
def explain(
    image: Annotated[Path, typer.Argument(help="A picture.", show_default=False)],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("explained.png"),
    model: _Model = "embedded",
    float_model: _FloatModel = None,
    builder: _Builder = None,
    cells: Annotated[int, typer.Option(min=2, max=40, help="Patches along a side.")] = 10,
) -> None:
    """Show where the detector looks in a face, the float network beside the compressed one."""
    _quiet_opencv()
    from defakeq import explain as module
    from defakeq.scorer import open_float, open_model

    scorers = [open_model(model, builder)]
    floating = open_float(float_model, model, builder)
    found = module.explain(image, scorers if floating is None else [*scorers, floating], cells)
    module.write_png(out, found.panels)
    where = "no face found, the whole picture" if found.box is None else "the largest face"
    scores = ", ".join(f"{kind} {score:.3f}" for kind, score in found.scores.items())
    typer.echo(f"{image}: {where}: probability of a forgery: {scores}")
    typer.echo(f"wrote {out}")


@app.command()
@_named_errors
def demo(
    photo: Annotated[
        Path | None, typer.Argument(help="A picture with a face; a bundled one when left out.")
    ] = None,
    copies: Annotated[int, typer.Option(min=1, help="Forged copies to score.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each network.")] = 50,
    threads: Annotated[int, typer.Option(min=1, help="Threads of both networks.")] = 1,
    people: Annotated[int, typer.Option(min=2, help="People in the generated data.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("defakeq-demo"),
) -> None:
    """Score a photograph and forged copies; evaluate generated data into an HTML report."""
    _quiet_opencv()
    import torch
    from rich.console import Console

    from defakeq import demo as module

    torch.set_num_threads(threads)
    module.show(module.run(photo, copies, repeats, out), Console())
    typer.echo(f"report on generated data: {module.report(out, people)}")


@app.command()
@_named_errors
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the version, the kernels of this machine, torch, GPU and threads."""
    from defakeq.info import collect, lines

    found = collect()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for label, text in lines(found):
        typer.echo(f"{label:18} {text}")


@app.command()
@_named_errors
def export(
    model: Annotated[Path, typer.Argument(help="A program (.dfq).", show_default=False)],
    onnx: Annotated[Path, typer.Option(help="The ONNX file to write.", show_default=False)],
    batch: Annotated[bool, typer.Option("--batch", help="Leave the batch size open.")] = False,
    weights: Annotated[str, typer.Option(help="int8 (fast in engines) or exact.")] = "int8",
    activations: Annotated[str, typer.Option(help="uint8 (fast on x86) or int8.")] = "uint8",
    engine: Annotated[str, typer.Option(help="any, or onnxruntime to suit its fusions.")] = "any",
) -> None:
    """Write the network of a program as quantized ONNX for other engines."""
    from defakeq.onnx_export import export as write

    made = write(model, onnx, batch=batch, weights=weights, activations=activations, engine=engine)
    typer.echo(f"{made.path}: {made.size / 1e6:.2f} MB")
    for note, count in made.notes.items():
        typer.echo(f"  approximated, {count} times: {note}")


@app.command()
@_named_errors
def aot(
    model: Annotated[Path, typer.Argument(help="A program (.dfq).", show_default=False)],
    arch: Annotated[str, typer.Option(help="sm_87, sm_89 or sm_90.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder to write; a new one.", show_default=False)],
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
) -> None:
    """Compile the layers of a program for a GPU, with a C++ loader; needs Triton but no GPU."""
    try:
        from defakeq_kernels.triton.aot import build
    except ImportError as error:
        raise ImportError(
            f"defakeq aot: found no Triton ({error}); accepted is triton >= 3.5: "
            "`pip install triton`"
        ) from error

    made = build(model, out, arch, batch)
    typer.echo(
        f"{made.folder}: {made.layers} layers, {made.kernels} kernels, {made.size / 1e6:.2f} MB"
    )


@app.command(
    add_help_option=False,
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
@_named_errors
def bench(context: typer.Context) -> None:
    """Measure the kernels (`defakeq bench --help`)."""
    from defakeq.bench.cli import app as bench_app

    bench_app(args=context.args, prog_name="defakeq bench")


@app.command()
@_named_errors
def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="A detector file (.dfq), 'embedded', or package.module:function."),
    ] = "embedded",
    data: Annotated[Path | None, typer.Option(help="Folder of the data.")] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Name of a data set (docs/data.md); 'folder' for real/ and fake/."),
    ] = None,
    float_model: _FloatModel = None,
    builder: _Builder = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    compression: Annotated[str, typer.Option(help="raw, c23 or c40.")] = "c23",
    frames: Annotated[int | None, typer.Option(help="Frames a video; all if left out.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Metrics as JSON.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Metrics as CSV.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Report, one file.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder of finished chunks; FILE.shards beside --json if left out."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures a batch.")] = 32,
    workers: Annotated[int, typer.Option(help="Threads that read, 0 for none.")] = 2,
    chunk: Annotated[int, typer.Option(help="Samples in one piece of work.")] = 256,
    repeats: Annotated[int, typer.Option(help="Bootstrap draws.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    misses: Annotated[int, typer.Option(help="Worst misses in the HTML report.")] = 4,
    quiet: Annotated[bool, typer.Option(help="No progress bar, no tables.")] = False,
) -> None:
    """Score data sets; print AUC, EER and more, beside the float model's.

    Several processes share the work: torchrun --nproc-per-node N -m defakeq evaluate ...
    """
    if data is None:
        raise ValueError("data: found none, accepted: --data FOLDER")
    _quiet_opencv()
    import shutil

    from rich.console import Console

    from defakeq.evaluate import run as module

    module.single_thread()
    settings = module.Settings(
        data,
        tuple(dataset or ["folder"]),
        model,
        float_model,
        builder,
        split,
        compression,
        frames,
        batch,
        workers,
        chunk,
        repeats,
        seed,
        misses,
    )
    for path in (json_file, csv_file, html_file):
        if path is not None:
            module.check_output(path)
    folder = resume
    if folder is None and json_file is not None:
        folder = json_file.with_name(f"{json_file.name}.shards")
    found = module.evaluate(settings, folder, quiet)
    if found is None:
        return
    spent = module.timing(settings, found)
    if json_file is not None:
        module.write(json_file, module.to_json(found.document))
    if csv_file is not None:
        module.write(csv_file, module.to_csv(found.document))
    if html_file is not None:
        module.write(html_file, module.to_html(settings, found, spent))
    if folder is not None and resume is None:
        shutil.rmtree(folder, ignore_errors=True)
    if not quiet:
        module.show(found.document, spent, Console())


@app.command(
    add_help_option=False,
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
@_named_errors
def data(context: typer.Context) -> None:
    """Make miniature data sets, and check data sets (`defakeq data --help`)."""
    _quiet_opencv()
    from defakeq.data.cli import app as data_app

    data_app(args=context.args, prog_name="defakeq data")


app.command()(_named_errors(convert_cli.detectors))
app.command()(_named_errors(convert_cli.convert))
app.command()(_named_errors(compression.compress))
app.command()(_named_errors(compression.inspect))


def main() -> None:
    """Run the command line."""
    app(prog_name="defakeq")


if __name__ == "__main__":
    main()
