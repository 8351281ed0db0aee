"""`detrkit describe MODEL` and `detrkit describe data FOLDER`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit.cli.console import build_table, get_console
from detrkit.cli.image_size import parse_size
from detrkit.cli.settings import RunSettings, given_settings
from detrkit.config.run import run_config
from detrkit.errors import ConfigError, arg

if TYPE_CHECKING:
    from detrkit.benchmark.describe import ModelDescription

_FIGURE_SUFFIXES = (".svg", ".png", ".pdf")


def build_describe() -> App:
    """Build the command and its subcommand `data`."""
    app = App(name="describe", help_format="markdown")
    app.default(describe)
    app.command(data)
    return app


def describe(
    source: str,
    /,
    *,
    size: str = "800x1066",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> None:
    """Show the parts of a model with parameters, GFLOPs and output shapes; `describe data` shows a dataset.

    Example: `detrkit describe detr-r50 --size 480x640`

    Parameters
    ----------
    source
        Preset, run folder or weights file.
    size
        Size of the image as the model sees it, HEIGHTxWIDTH in pixels.
    output
        Figure of the tensor shapes to write: .svg, .png or .pdf.
    """
    height_width = parse_size(size)
    if output is not None:
        if output.suffix.lower() not in _FIGURE_SUFFIXES:
            raise ConfigError(f"{arg('output', output)} has the wrong suffix; expected {', '.join(_FIGURE_SUFFIXES)}.")
        refuse_foreign_overwrite(output)

    from detrkit.benchmark.describe import describe_model

    description = describe_model(source, size=height_width)
    _print_description(description)
    if output is not None:
        description.save_figure(output)
        get_console().print(f"written: {output}", soft_wrap=True)


def _print_description(description: "ModelDescription") -> None:
    height, width = description.size
    rows = [
        (stage.part, "\n".join(map(str, stage.io.outputs)), f"{stage.num_parameters:,}", f"{stage.gflops:.2f}")
        for stage in description.stages
    ]
    rows.append(("all", "", f"{description.num_parameters:,}", f"{description.gflops:.2f}"))
    console = get_console()
    title = f"{description.name}, an image of {height} x {width} px"
    console.print(build_table(title, ("part", "outputs", "parameters", "GFLOPs"), rows))
    console.print(
        f"{description.num_trainable:,} parameters are trained. Batch of one image; axes as in docs/notation.md.\n"
        "A multiplication and an addition are two FLOPs; attention is counted."
    )


def data(
    data: str,
    /,
    *,
    format: Literal["coco", "panoptic", "yolo", "voc", "shards"] | None = None,
    model: str | None = None,
    count: int = 12,
    epoch: int = 1,
    config: Path | None = None,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("samples.png"),
    settings: Annotated[RunSettings | None, Parameter(name="*")] = None,
) -> None:
    """Show photos as training sees them: after augmentation, with their boxes; and the table of classes.

    Takes the settings of `detrkit train`, so that what they do to photos can be looked at first.

    Example: `detrkit describe data photos --mosaic 0.5 --photometric 1`

    Parameters
    ----------
    data
        Dataset folder.
    format
        How the dataset is written down; looked at when not given.
    model
        Preset to be trained; detrkit-s, detrkit-m and detr-tiny have defaults of their own.
    count
        Samples to show.
    epoch
        Whose randomness to show, from 1; the last ones are without mosaic and the like.
    config
        YAML file of `detrkit train`; the command line wins over it.
    output
        Picture to write, as PNG.
    """
    from detrkit.benchmark.describe_data import describe_data

    given = {"data": data, "format": format, "model": model}
    given = {name: value for name, value in given.items() if value is not None}
    resolved = run_config({**given, **given_settings(settings)}, config)
    describe_data(resolved, count=count, epoch=epoch, output=output)
