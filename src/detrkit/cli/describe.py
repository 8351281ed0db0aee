"""`detrkit describe`."""

from typing import Annotated

from cyclopts import Parameter


def describe(
    model: str,
    /,
    *,
    size: Annotated[str, Parameter(help="Photo size, HEIGHTxWIDTH in pixels, as the model sees it.")] = "800x1066",
) -> None:
    """Show a model's parts, parameters, GFLOPs, and the shape at every stage.

    Example: `detrkit describe detr-r50 --size 480x640`

    Parameters
    ----------
    model
        Preset, or a run folder or weights file.
    """
    from detrkit.recipes.describe import describe_model

    describe_model(model, size)
