"""Readers of untrusted content keep their contract: on the corpus, on the inputs fuzzing starts from, on changed ones."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from detrkit.errors import DatasetError
from tests.fuzz.mutators import MUTATORS
from tests.fuzz.oracle import MAX_BYTES, MAX_SECONDS, check
from tests.fuzz.target import CORPUS, Fuzzed, Target
from tests.fuzz.targets import TARGETS

_MUTANTS = 60
_MAX_SECONDS = 5 * MAX_SECONDS  # signatures are checked in the tests, which takes a multiple of the time

each_target = pytest.mark.parametrize(
    "target",
    [pytest.param(one, marks=pytest.mark.slow) if one.is_slow else one for one in TARGETS.values()],
    ids=lambda one: one.name,
)


@pytest.fixture
def fuzzed(target: Target) -> Iterator[Fuzzed]:
    with Fuzzed(target) as prepared:
        yield prepared


@each_target
def test_contract_is_kept_on_corpus_and_seeds(target: Target, fuzzed: Fuzzed, tmp_path: Path) -> None:
    """The seeds of ../shared/data/nasty are among them where it is present."""
    for content in target.all_seeds(tmp_path):
        finding = fuzzed.check(content, _MAX_SECONDS)
        assert finding is None, f"{finding.key}\n{finding.detail}\n{content[:500]!r}"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda one: one.name)
def test_contract_is_kept_on_changed_inputs(target: Target, fuzzed: Fuzzed, tmp_path: Path) -> None:
    random, seeds = Random(0), target.all_seeds(tmp_path)
    for _ in range(_MUTANTS):
        content = target.mutate(random.choice(seeds), random)
        finding = fuzzed.check(content, _MAX_SECONDS)
        assert finding is None, f"{finding.key}\n{finding.detail}\n{content[:500]!r}"


def test_corpus_is_small_and_belongs_to_targets() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= set(TARGETS)
    assert sum(path.stat().st_size for path in files) < 200_000


@pytest.mark.parametrize("name", MUTATORS)
def test_mutation_depends_on_the_seed_alone(name: str) -> None:
    content = b'{"a": [1, {"b": "c"}], "__metadata__": {"x": "[1]"}}'
    for seed in range(50):
        changed = MUTATORS[name](content, Random(seed))
        assert isinstance(changed, bytes)
        assert changed == MUTATORS[name](content, Random(seed))


def fail_with_another_error() -> None:
    raise KeyError("x")


def fill_the_memory() -> None:
    assert len(b"\1" * (MAX_BYTES + 50_000_000)) > MAX_BYTES


def hide_that_memory_is_exhausted() -> None:
    try:
        raise MemoryError
    except MemoryError:
        raise DatasetError("a.json: not readable") from None


def raise_without_a_message() -> None:
    raise DatasetError("")


def take_seconds() -> None:
    sum(range(10**9))


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (fail_with_another_error, "KeyError"),
        (fill_the_memory, "memory"),
        (hide_that_memory_is_exhausted, "memory"),
        (raise_without_a_message, "message"),
        pytest.param(take_seconds, "slow", marks=pytest.mark.slow),
    ],
)
def test_violation_of_the_contract_is_found(run: Callable[[], None], kind: str) -> None:
    if run is fill_the_memory and not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of the memory is known on Linux only")
    finding = check(run)
    assert finding is not None
    assert finding.kind == kind


def test_result_and_sentence_keep_the_contract() -> None:
    def refuse() -> None:
        raise DatasetError("a.json: found nothing, expected a list")

    assert check(refuse) is None
    assert check(lambda: None) is None
