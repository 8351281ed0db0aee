"""A short run of the fuzzer on targets of each kind; `python -m tests.fuzz.run` runs any target, and for longer."""

import sys
from pathlib import Path

import pytest

from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS

# weights, images and settings, as starting atheris takes ten seconds; test_corpus.py covers all targets without it
_NAMES = ("pickle", "image", "huggingface")
_RUNS, _SECONDS = 500, 60.0  # with fixed inputs: a new finding must not fail an unrelated change


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="atheris is built for Linux")
@pytest.mark.parametrize("name", _NAMES)
def test_fuzzer_finds_nothing_in_its_first_runs(name: str, tmp_path: Path) -> None:
    assert name in TARGETS
    pytest.importorskip("atheris", reason="needs atheris, of the dependency group fuzz")
    result = fuzz(name, _SECONDS, tmp_path, runs=_RUNS)
    assert result.executions > 0
    assert not result.findings, f"{result}\n{(tmp_path / 'log').read_text(errors='replace')[-5000:]}"
