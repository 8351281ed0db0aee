"""`detrkit describe MODEL` and `detrkit describe data FOLDER`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit.checkpoints.path_kinds import DATASET, MODEL, check_kinds, kind_of
from detrkit.checkpoints.sources import check_source
from detrkit.checkpoints.zoo import MODEL_NAMES
from detrkit.cli.console import build_table, get_console
from detrkit.cli.image_size import parse_size
from detrkit.cli.settings import RunSettings, given_settings
from detrkit.config.run import run_config
from detrkit.data.formats.registry import FormatName, check_dataset_path
from detrkit.errors import ConfigError, arg
from detrkit.models.presets import preset_config

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
    size: str | None = None,
    model: str | None = None,
    state_dict_key: str | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> None:
    """Show the parts of a model with parameters, GFLOPs and output shapes; `describe data` shows a dataset.

    Example: `detrkit describe detr-r50 --size 480x640`

    Parameters
    ----------
    source
        Preset, run folder or weights file.
    size
        Size of the image as the model sees it, HEIGHTxWIDTH in pixels. Default: of the squares to which the model
        stretches images, or 800x1066.
    model
        Preset, or config.yaml of a run, of weights that do not describe their model, such as a saved state_dict().
    state_dict_key
        Entry of a .pth file that holds the weights, such as ema_model; default: the moving average if there is one.
    output
        Figure of the tensor shapes to write: .svg, .png or .pdf.
    """
    height_width = None if size is None else parse_size(size)
    if output is not None:
        if output.suffix.lower() not in _FIGURE_SUFFIXES:
            raise ConfigError(f"{arg('output', output)} has the wrong suffix; expected {', '.join(_FIGURE_SUFFIXES)}.")
        refuse_foreign_overwrite(output)

    if kind_of(source) == "dataset":
        raise ConfigError(
            f"{arg('source', source)} is a dataset, expected a model; for its images: describe data {source}"
        )
    check_kinds({"source": (source, MODEL)})
    if source not in MODEL_NAMES:  # presets are described without weights
        check_source(source)

    from detrkit.benchmark.describe import describe_model

    description = describe_model(source, size=height_width, model=model, state_dict_key=state_dict_key)
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
    others = description.num_parameters - sum(stage.num_parameters for stage in description.stages)
    if others:
        gflops = description.gflops - sum(stage.gflops for stage in description.stages)
        rows.append(("others", "", f"{others:,}", f"{gflops:.2f}"))
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
    format: FormatName | None = None,
    model: str | None = None,
    count: int = 12,
    epoch: int = 1,
    config: Path | None = None,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("samples.png"),
    settings: Annotated[RunSettings | None, Parameter(name="*")] = None,
) -> None:
    """Show augmented training samples with their boxes, and the number of objects per class.

    Takes the settings of `detrkit train`, to see their effect on the images before training.

    Example: `detrkit describe data photos --mosaic 0.5 --photometric 1`

    Parameters
    ----------
    data
        Dataset folder.
    format
        Annotation format; detected from the folder if omitted.
    model
        Preset to be trained; its defaults apply.
    count
        Samples to show.
    epoch
        Epoch whose augmentation is shown, from 1; the last epochs have no strong augmentation.
    config
        YAML file of `detrkit train`; the command line wins over it.
    output
        Picture to write, as PNG.
    """
    check_kinds({"data": (data, DATASET)})
    check_dataset_path(data)

    given = {"data": data, "format": format, "model": model}
    given = {name: value for name, value in given.items() if value is not None}
    resolved = run_config({**given, **given_settings(settings)}, config)
    preset_config(resolved.model, **resolved.model_overrides)

    from detrkit._internal.text import plural
    from detrkit.benchmark.describe_data import describe_data
    from detrkit.cli.doctor import class_table

    result = describe_data(resolved, count=count, epoch=epoch, output=output)
    console = get_console()
    console.print(class_table(result.classes, result.splits))
    for error in result.errors:
        console.print(f"left out: {error}", soft_wrap=True)
    console.print(
        f"{plural(result.num_samples, 'sample')} of epoch {epoch}: sides of {result.min_side} to {result.max_side} px, "
        f"{plural(result.num_objects, 'object')}; {result.padding:.0%} padding in a batch of the first {result.batch_size}"
    )
    console.print(f"picture: {output}", soft_wrap=True)
