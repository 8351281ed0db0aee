"""Code blocks of the documentation: which of them run, and why others cannot.

Everything runs as it is written, in a folder that holds what the pages assume; only trainings are shortened. A block
that cannot run has the reason in a comment before it, ``<!-- not run: REASON -->``; kinds of commands that never run in
tests are listed in `NEVER_RUN`. A block after ``<!-- output -->`` is the output of the block before: what it prints, and
the value of its last line.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detrkit.checkpoints.zoo import MODEL_NAMES
from detrkit.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?P<rest>.*)$")
_MARK = re.compile(r"<!-- (?:(?P<output>output)|not run: (?P<reason>\S.*)) -->")
_SHELLS = ("", "bash", "console", "sh", "shell")

# why commands are not run, by pattern; other tests run most of them
NEVER_RUN = {
    r"demo\b": "trains for minutes; tests/end_to_end/test_demo.py",
    r"train .*--resume\b": "needs a run that was stopped; tests/end_to_end/test_resume.py",
    r"benchmark\b": "measures in further processes; tests/benchmark",
    r"serve\b": "runs until it is stopped; tests/serve",
    r".* --slurm ": "needs a cluster; tests/training/test_slurm.py",
    r".* --devices ": "starts processes; tests/distributed",
    r".* --push ": "needs the hub; tests/checkpoints/test_hub.py",
    r".*\.(pth|safetensors)\b": "needs a file of weights; tests/checkpoints",
    r".*(\bclip\.mp4|camera|rtsp:)": "needs a video; tests/inference/test_video.py",
    r".* hf:": "needs a download; tests/checkpoints/test_hub_download.py",
    rf"(predict|evaluate|explain|export|convert) ({'|'.join(MODEL_NAMES)})( |$)": "needs published weights",
    rf".*--weights ({'|'.join(MODEL_NAMES)})( |$)": "needs published weights",
    r"train .*--model (?!detr-tiny|detrkit-[sm])": "too large for a test; tests/end_to_end and tests/parity",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: file.
        line: of its fence, from 1.
        language: after the fence.
        title: file that the block is saved as, or "".
        code: without the fences.
        reason: why it is not run, or "".
        output: content of the output block that follows, or None.
    """

    page: Path
    line: int
    language: str
    title: str
    code: str
    reason: str
    output: str | None = None

    @property
    def place(self) -> str:
        """The page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_python(self) -> bool:
        """True for Python code."""
        return self.language == "python"

    @property
    def commands(self) -> list[str]:
        """Lines that call detrkit, continuation lines joined, without the word ``detrkit``; none unless it is a shell's."""
        if self.language not in _SHELLS:
            return []
        lines = self.code.replace("\\\n", " ").splitlines()
        return [match[1].strip() for line in lines if (match := re.match(r"detrkit ([a-z].*)", line))]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in order, outputs attached to the block before."""
    found: list[Block] = []
    for block, is_output in _raw_blocks(page):
        if is_output:
            last = found.pop()
            found.append(Block(*[getattr(last, name) for name in list(Block.__annotations__)[:-1]], block.code))
        else:
            found.append(block)
    return found


def _raw_blocks(page: Path) -> Iterator[tuple[Block, bool]]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        if opening is None:
            number += 1
            continue
        start = number
        number += 1
        while lines[number].strip() != "```":
            number += 1
        code = "\n".join(line.removeprefix(opening["indent"]) for line in lines[start + 1 : number])
        before = next((line for line in reversed(lines[:start]) if line.strip()), "")
        mark = _MARK.fullmatch(before.strip())
        title = re.search(r'title="([^"]+)"', opening["rest"])
        reason = (mark["reason"] or "") if mark else ""
        block = Block(page, start + 1, opening["language"], title[1] if title else "", code, reason)
        yield block, bool(mark and mark["output"])
        number += 1


def reason_of(command: str) -> str:
    """Return why a command is not run, or "" if it is."""
    command = re.sub(r"\s+", " ", command)
    return next((reason for pattern, reason in NEVER_RUN.items() if re.match(pattern, f"{command} ")), "")


def words(command: str) -> list[str]:
    """Split a command into its words, without a comment."""
    return shlex.split(command, comments=True)


def name_of(command: str) -> str:
    """Return the name of a command: "train", "describe data"."""
    first, second = [*words(command), "", ""][:2]
    return "describe data" if (first, second) == ("describe", "data") else first


def is_command(command: str) -> bool:
    """Return whether the first word is one of detrkit's commands."""
    return words(command)[0] in COMMANDS
