"""Writes a page per command of the command line, from the parser of cyclopts that also makes ``--help``."""

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from detrkit.cli import COMMANDS, build_app

FOLDER = "reference/commands"
_HEADER = """\
# Command line

`detrkit COMMAND --help` prints these pages, with the options of your version. Options have the names of the arguments
in Python: `--batch-size 4` is `batch_size=4`. A flag is negated with `--no-`: `--no-augment`.

Commands end with exit code 0 for success, 1 if `doctor` found errors in the dataset, 2 for a mistake in the arguments
or the data (one sentence says which), 130 after Ctrl-C.

"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the commands to the navigation, below their overview.

    Raises:
        ValueError: the overview is not there.
    """
    section = _section_of(config.nav, f"{FOLDER}/index.md")
    if section is None:
        raise ValueError(f"mkdocs.yml: {FOLDER}/index.md is not in the navigation")
    section += [{name: f"{FOLDER}/{name}.md"} for name in COMMANDS]
    return config


def _section_of(entries: Any, page: str) -> list[Any] | None:
    """Return the section of the navigation that has a page, or None."""
    if not isinstance(entries, list):
        return None
    if page in entries:
        return entries
    nested = (value for entry in entries if isinstance(entry, dict) for value in entry.values())
    return next((found for one in nested if (found := _section_of(one, page)) is not None), None)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    rows = "".join(f"| [`{name}`]({name}.md) | {summary} |\n" for name, summary in COMMANDS.items())
    index = f"{_HEADER}| command | |\n|---|---|\n{rows}"
    for name in COMMANDS:
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=command_page(name)))
    files.append(File.generated(config, f"{FOLDER}/index.md", content=index))
    return files


def command_page(name: str) -> str:
    """Return the page of a command."""
    app: Any = build_app(name)[name]
    return tidy(app.generate_docs(output_format="markdown", heading_level=1), name)


def tidy(page: str, name: str) -> str:
    """Say how a command is called, show its example as code, and keep patterns such as ``*.jpg`` from being emphasis."""
    page = re.sub(r"\A# .*", f"# detrkit {name}", page)
    page = re.sub(rf"^{re.escape(name)}( |$)", rf"detrkit {name}\1", page, flags=re.MULTILINE)
    return "\n".join(_line(line) for line in page.splitlines()) + "\n"


def _line(line: str) -> str:
    if example := re.fullmatch(r"Example: `(.+)`", line):
        return f"```\n{example[1]}\n```"
    parts = line.split("`")  # code is at odd places
    return "`".join(
        part if number % 2 else re.sub(r"(?<=[\w/])\*(?=[.\w])", r"\*", part) for number, part in enumerate(parts)
    )
