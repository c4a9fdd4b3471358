"""The command `curv plot`."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from curvcli.errors import DataError, SpecError, UsageError

Kind = Literal["png", "svg", "pdf", "html"]
KINDS = get_args(Kind)
STDIN = Path("-")


def plot(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT…", help="reports of one analysis, as -o FILE wrote them; - is stdin")
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option("-o", "--output", metavar="FILE",
                     help="FILE.png, .svg, .pdf or .html (repeatable; default: beside the report, .png); - is stdout"),
    ] = None,
    format: Annotated[Kind | None, typer.Option(help="default: by the name of FILE, else png")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="of a run: 2/lr is drawn beside λ_max", min=1e-30)
    ] = None,
    image_shape: Annotated[
        str | None, typer.Option(metavar="HxW", help="of influence: inputs are images of this shape: 8x8, 32x32x3")
    ] = None,
    dpi: Annotated[int, typer.Option(help="of png", min=20, max=1200)] = 150,
) -> int:  # fmt: skip
    """[bold]curv plot spectrum.json -o spectrum.html[/bold]

    [bold]curv spectrum runs/7 --all-steps -o run.jsonl; curv plot run.jsonl --learning-rate 0.1[/bold]

    Draws reports as png, svg, pdf, or as a self-contained page that shows values, switches scales and hides series.
    Several reports are overlaid. Reports of one run at several steps become curves over the steps, and spectra a map.
    The names of the files written are printed on stdout.
    """
    from curvcli.cli.output import STDOUT, own_stdout, write_line
    from curvcli.run import files

    if importlib.util.find_spec("matplotlib") is None:
        raise SpecError("curv plot needs matplotlib", "pip install 'curvcli[plot]'")
    shape = _shape(image_shape)
    loaded = _read(reports)
    targets: list[tuple[Path, Kind]] = [
        (path, _kind(path, format)) for path in output or [_beside(reports[0], loaded[0], format)]
    ]
    files_written = {f"-o {path}": path for path, _ in targets if path not in STDOUT}
    for path in files_written.values():
        files.check_writable(path)
    files.check_distinct(files_written)
    figure = _picture(loaded, learning_rate, shape)
    with own_stdout() as stdout:
        for path, kind in targets:
            content = _rendered(figure, loaded, kind, dpi)
            if path in STDOUT:
                stdout.buffer.write(content)
                stdout.flush()
            else:
                files.write_file(path, content)
                write_line(stdout, str(path))
    return 0


def _read(paths: list[Path]) -> list[Any]:
    """Read all reports, and warn of checkpoints without one."""
    from curvcli.cli.console import warn
    from curvcli.run.reports import read_all

    if paths.count(STDIN) > 1:
        raise UsageError("stdin is read once, and - is given twice", "give - once: all reports of stdin are read")
    loaded = []
    for path in paths:
        reports, failed = read_all(path)
        loaded += reports
        if failed:
            warn(f"{path}: {failed} checkpoint{'s' * (failed != 1)} without a report, left out")
    if not loaded:
        raise DataError(f"{paths[0]} holds error records only", "show their messages: jq .error " + str(paths[0]))
    return loaded


def _picture(reports: list[Any], learning_rate: float | None, shape: tuple[int, ...] | None) -> Any:
    from curvcli.cli.console import warn
    from curvcli.figures.assemble import analysis, picture, wanted_images
    from curvcli.figures.picture import Image
    from curvcli.run.inputs import images_of, scores_of
    from curvcli.schema.base import printable_values, without_tiny

    images = {}
    if all(analysis(report) == "influence" for report in reports):
        places = wanted_images(reports)
        pixels, why = images_of(reports[0], places, shape) if places else ({}, "")
        if why and shape is not None:
            warn(f"inputs are not drawn: {why}")
        images = {place: Image(array.tolist(), f"input {place[0]} {place[1]}") for place, array in pixels.items()}
        reports = [scores_of(report) for report in reports]
    elif shape is not None:
        raise UsageError("--image-shape is for reports of influence", "leave it out")
    return picture([without_tiny(printable_values(report)) for report in reports], images, learning_rate)


def _rendered(figure: Any, reports: list[Any], kind: Kind, dpi: int) -> bytes:
    if kind == "html":
        from curvcli.figures import page

        return page.write(figure, reports)
    from curvcli.figures import paint

    return paint.write(figure, kind, dpi)


def _kind(path: Path, given: Kind | None) -> Kind:
    from curvcli.cli.output import STDOUT

    suffix = path.suffix.lower().removeprefix(".")
    if given is None and path not in STDOUT and suffix not in KINDS:
        raise UsageError(f"-o {path}: not a format for pictures", "the name must end in .png, .svg, .pdf or .html")
    return given or (suffix if suffix in KINDS else "png")  # pyright: ignore[reportReturnType]


def _beside(path: Path, report: Any, given: Kind | None) -> Path:
    """Return the default path of the picture: beside its report, or in the current folder for stdin."""
    from curvcli.figures.assemble import analysis

    suffix = f".{given or 'png'}"
    return Path(analysis(report) + suffix) if path == STDIN else path.with_suffix(suffix)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}(x[13])?", text):
        raise UsageError(f"--image-shape {text}: no shape of an image", "write it as HxW or HxWxC: 28x28, 32x32x3")
    return tuple(map(int, text.split("x")))
