# daily commands; `just` lists them
default:
    @just --list
test *args:  # the inner loop: everything but slow tests
    uv run pytest -m "not slow" {{args}}
test-all *args:
    uv run pytest {{args}}
check:  # what CI checks after the tests
    uv run ruff check . && uv run ruff format --check . && uv run mypy
