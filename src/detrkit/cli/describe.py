"""`detrkit describe MODEL` and `detrkit describe data FOLDER`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from detrkit.cli.settings import RunSettings, given_settings
from detrkit.config.run import run_config


def build_describe() -> App:
    """Put the verb and its own verb together."""
    app = App(name="describe", help_format="markdown")
    app.default(describe)
    app.command(data)
    return app


def describe(
    model: str,
    /,
    *,
    size: Annotated[str, Parameter(help="Photo size, HEIGHTxWIDTH in pixels, as the model sees it.")] = "800x1066",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> None:
    """Show a model's parts, parameters, GFLOPs, and the shape at every stage; `describe data` shows a dataset.

    Example: `detrkit describe detr-r50 --size 480x640`

    Parameters
    ----------
    model
        Preset, or a run folder or weights file.
    output
        Picture of the shapes to write as well: .svg, .png or .pdf.
    """
    from detrkit.benchmark.describe import describe_model

    describe_model(model, size, output)


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
