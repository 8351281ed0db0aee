"""`detrkit config`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detrkit._internal.files import write_text
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit.cli.console import get_console
from detrkit.cli.settings_document import settings_document
from detrkit.models.presets import preset_config


def config(
    *,
    model: str = "detrkit-s",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> None:
    """List all settings of training with their meaning, as a YAML file for `detrkit train --config`.

    Every setting but the model is commented out: remove the # before those to set.

    Example: `detrkit config --model detr-r50 --output settings.yaml`

    Parameters
    ----------
    model
        Preset whose values are listed.
    output
        File to write; printed by default.
    """
    document = settings_document(model, preset_config(model))
    if output is None:
        get_console().print(document, end="", soft_wrap=True)
        return
    refuse_foreign_overwrite(output)
    write_text(output, document)
    get_console().print(f"written: {output}", soft_wrap=True)
