# daily commands; `just` lists them
default:
    @just --list
test *args:  # the inner loop: everything but slow tests
    uv run pytest -m "not slow" {{args}}
test-all *args:
    uv run pytest {{args}}
check:  # what CI checks after the tests
    uv run ruff check . && uv run ruff format --check . && uv run mypy
docs:  # the documentation site, at http://127.0.0.1:8000
    uv run mkdocs serve
test-lowest *args:  # with the lowest allowed version of every direct dependency, in an environment of its own
    UV_PROJECT_ENVIRONMENT=.venv-lowest uv sync --resolution lowest-direct --all-groups
    UV_PROJECT_ENVIRONMENT=.venv-lowest uv run --no-sync pytest -m "not slow" {{args}}
audit:  # known vulnerabilities in the newest and in the lowest allowed versions (asks osv.dev)
    uv audit
    uv audit --resolution lowest-direct --ignore GHSA-rrmf-rvhw-rf47
