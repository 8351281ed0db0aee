"""`detrkit models`."""

from detrkit.checkpoints.zoo import list_models
from detrkit.cli.console import build_table, get_console


def models() -> None:
    """List the models that can be used by name: parameters, published AP, licences and source of the weights.

    AP is that of the boxes on COCO val2017, 0 to 1, as the authors published it.

    Example: `detrkit models`
    """
    headings, *rows = list_models().rows()
    console = get_console()
    if console.is_terminal:
        console.print(build_table("", headings, rows))
    else:  # one line per model, for scripts
        console.print(repr(list_models()), soft_wrap=True)
