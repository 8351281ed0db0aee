"""Writes the page of all models, and puts the table of its models into the page of each family."""

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from detrkit.checkpoints.zoo import ModelInfo, list_models

_PLACE = re.compile(r"^<!-- models: (.+) -->$", re.MULTILINE)  # in a page: names of families
_HEADER = """\
# Models

All models that `detrkit.build_model`, `detrkit train --model` and, where weights were published, `Detector.load` take by
name. `detrkit models` prints the same list.

AP is the box AP on COCO val2017 that the authors published, also for panoptic models. The last column says
[how a download is checked](../guides/checkpoints.md#models-of-the-hub-and-downloads). Where it is empty, no weights can be
downloaded by name.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    families = dict.fromkeys(model.family for model in list_models())
    tables = [f"## {family}\n\n{family_table([family])}" for family in families]
    files.append(File.generated(config, "reference/models.md", content="\n\n".join([_HEADER, *tables]) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace ``<!-- models: FAMILY, FAMILY -->`` by a table."""
    return _PLACE.sub(lambda match: family_table([one.strip() for one in match[1].split(",")]), markdown)


def family_table(families: list[str]) -> str:
    """Return a table of the models of some families.

    Raises:
        ValueError: a family has no models.
    """
    models = list_models()
    unknown = set(families) - {model.family for model in models}
    if unknown:
        raise ValueError(f"no models of {', '.join(sorted(unknown))}")
    rows = [_row(model) for model in models if model.family in families]
    heading = (
        "| model | parameters | AP | licence of code | licence of weights | weights |\n|---|---:|---:|---|---|---|"
    )
    return "\n".join([heading, *rows])


def _row(model: ModelInfo) -> str:
    cells = [
        f"`{model.name}`",
        f"{model.parameters / 1e6:.1f} M",
        "" if model.ap is None else f"{100 * model.ap:.1f}",
        model.code_licence or "",
        model.weights_licence or "",
        model.checked_by or "",
    ]
    return f"| {' | '.join(cells)} |"
