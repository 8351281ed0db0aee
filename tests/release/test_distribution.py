"""The wheel and the source distribution: built, installed into a new environment, and used there."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import detrkit

ROOT = Path(__file__).parents[2]
WITHOUT_NETWORK = ("--no-isolation", "--skip-dependency-check")
NO_REPOSITORY = {"GITHUB_SERVER_URL": "", "GITHUB_REPOSITORY": ""}
# the demo with few images
SHORT_DEMO = """
import sys
from detrkit.demo import run
run.NUM_TRAIN, run.NUM_VAL = 32, 12
run.EPOCHS = dict.fromkeys(run.EPOCHS, 1)
from detrkit.cli import main
main(["demo", "--output", sys.argv[1]])
"""


def run(command: Sequence[object], **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    result = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**kept, **environment}, cwd=Path(sys.prefix)
    )
    assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def build(output: Path, **environment: str) -> tuple[Path, Path]:
    """Build the source distribution, and the wheel from it; nothing is downloaded."""
    run([sys.executable, "-m", "build", *WITHOUT_NETWORK, "--outdir", output, ROOT], **environment)
    (sdist,), (wheel,) = output.glob("*.tar.gz"), output.glob("*.whl")
    return sdist, wheel


def files_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: Path) -> Message:
    (text,) = (content for name, content in files_of(wheel).items() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(text.decode())


@pytest.mark.slow
def test_wheel_from_the_source_distribution_runs_the_demo_in_a_new_environment(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs hatchling, which the group test installs")
    sdist, wheel = build(tmp_path / "dist", **NO_REPOSITORY)

    source = ROOT / "src" / "detrkit"
    files = {path.relative_to(ROOT / "src").as_posix() for path in source.rglob("*") if path.suffix and path.is_file()}
    expected = {name for name in files if not name.endswith(".pyc")}
    assert {"detrkit/py.typed", "detrkit/visualization/templates/page.html", "detrkit/serve/page/live.js"} <= expected
    content = files_of(wheel)
    assert {name for name in content if ".dist-info/" not in name} == expected
    assert content[f"detrkit-{detrkit.__version__}.dist-info/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    run([sys.executable, "-m", "build", "--wheel", *WITHOUT_NETWORK, "--outdir", tmp_path, ROOT], **NO_REPOSITORY)
    assert files_of(tmp_path / wheel.name) == content, "the wheel of the repository differs from that of the sdist"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "SECURITY.md", "examples/minimal_detr.py"} <= names
    assert metadata(wheel)["Version"] == detrkit.__version__
    assert metadata(wheel)["Project-URL"] is None, "the address is known in the repository's workflow only"

    place = tmp_path / "environment"
    run([sys.executable, "-m", "venv", place])
    binaries = place / ("Scripts" if os.name == "nt" else "bin")
    python, detrkit_command = binaries / "python", binaries / "detrkit"
    run([python, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", wheel])
    packages = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    # the dependencies of the tests' environment; its own detrkit comes after the one that was installed
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (Path(packages) / "dependencies.pth").write_text("\n".join(dependencies))
    assert run([python, "-c", "import detrkit; print(detrkit.__file__)"]).strip().startswith(packages)

    assert run([detrkit_command]).startswith("Start here")
    output = run([python, "-c", SHORT_DEMO, tmp_path / "run"])
    assert "AP50" in output
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_package_that_a_workflow_builds_has_the_addresses_of_its_repository(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs hatchling, which the group test installs")
    address = "https://github.com/someone/detrkit"
    _, wheel = build(
        tmp_path, GITHUB_SERVER_URL="https://github.com", GITHUB_REPOSITORY="someone/detrkit", GITHUB_SHA="0123abc"
    )
    fields = metadata(wheel)
    urls = dict(url.split(", ") for url in fields.get_all("Project-URL"))
    assert urls["Repository"] == address
    assert urls["Changelog"] == f"{address}/blob/main/CHANGELOG.md"
    text = fields.get_payload()
    assert f"]({address}/blob/0123abc/LICENSE)" in text or f"]({address}/blob/0123abc/CITATION.cff)" in text
    assert not [link for link in text.split("](")[1:] if not link.startswith(("http", "#"))], "a relative link"
