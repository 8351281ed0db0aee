"""Loggers by name. A new one is a module here and a line in `LOGGERS`, or any object with the methods of `Logger`."""

from collections.abc import Sequence
from importlib import import_module

from detrkit.errors import ConfigError, arg, did_you_mean
from detrkit.training.loggers.base import LogContext, Logger, LoggerCallback

LOGGERS = {"jsonl": "jsonl:JSONLogger", "tensorboard": "tensorboard:TensorBoardLogger"}
ALWAYS = "jsonl"  # metrics.jsonl is part of a run folder: the report and a resumed run read it

__all__ = ["LOGGERS", "LogContext", "Logger", "LoggerCallback", "build_loggers", "check_loggers"]


def build_loggers(loggers: Sequence[str | Logger]) -> list[Logger]:
    """Build the loggers of a run, that of metrics.jsonl first.

    Args:
        loggers: names in `LOGGERS`, or loggers.

    Raises:
        ConfigError: there is no logger of that name.
    """
    check_loggers(loggers)
    names = [ALWAYS, *(logger for logger in loggers if logger != ALWAYS)]
    return [_by_name(logger) if isinstance(logger, str) else logger for logger in names]


def check_loggers(loggers: Sequence[str | Logger]) -> None:
    """Check names of loggers.

    Raises:
        ConfigError: there is no logger of that name.
    """
    for logger in [loggers] if isinstance(loggers, str) else loggers:
        if isinstance(logger, str) and (logger not in LOGGERS or logger is loggers):
            raise ConfigError(f"{arg('loggers', logger)}: expected a list of names; {did_you_mean(logger, LOGGERS)}")


def _by_name(name: str) -> Logger:
    module, _, attribute = LOGGERS[name].partition(":")
    logger: Logger = getattr(import_module(f"{__name__}.{module}"), attribute)()
    return logger
