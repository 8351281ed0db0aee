"""Detection transformers: train on your own images, evaluate, explain, export, serve.

The public names are imported on first use, so that ``import detrkit`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detrkit._version import __version__

if TYPE_CHECKING:  # `as` marks names that are exported to users of type checkers
    from detrkit.benchmark.benchmark import benchmark as benchmark
    from detrkit.benchmark.describe import describe_model as describe_model
    from detrkit.checkpoints.conversion.convert import convert as convert
    from detrkit.checkpoints.conversion.official import load_official_state_dict as load_official_state_dict
    from detrkit.checkpoints.conversion.official import state_dict_as_official as state_dict_as_official
    from detrkit.checkpoints.zoo import list_models as list_models
    from detrkit.config.model import ModelConfig as ModelConfig
    from detrkit.data.checks.examine import DatasetReport as DatasetReport
    from detrkit.data.checks.examine import examine as examine
    from detrkit.data.dataset import DatasetSplits as DatasetSplits
    from detrkit.data.splits import load_dataset as load_dataset
    from detrkit.errors import CheckpointError as CheckpointError
    from detrkit.errors import ConfigError as ConfigError
    from detrkit.errors import DatasetError as DatasetError
    from detrkit.errors import DetrkitError as DetrkitError
    from detrkit.errors import ExportError as ExportError
    from detrkit.evaluation.evaluate import evaluate as evaluate
    from detrkit.evaluation.result import EvalResult as EvalResult
    from detrkit.explain.explain import explain as explain
    from detrkit.export.export import export as export
    from detrkit.inference.detector import Detector as Detector
    from detrkit.inference.predict import predict_files as predict_files
    from detrkit.losses.criterion import SetCriterion as SetCriterion
    from detrkit.models.detr import DETR as DETR
    from detrkit.models.presets import build_model as build_model
    from detrkit.structures import Annotations as Annotations
    from detrkit.structures import Batch as Batch
    from detrkit.structures import Detection as Detection
    from detrkit.structures import Detections as Detections
    from detrkit.structures import Predictions as Predictions
    from detrkit.structures import Sample as Sample
    from detrkit.structures import Target as Target
    from detrkit.training.callbacks import Callback as Callback
    from detrkit.training.result import TrainResult as TrainResult
    from detrkit.training.train import resume as resume
    from detrkit.training.train import train as train


_HOME_OF = {
    "describe_model": "detrkit.benchmark.describe",
    "convert": "detrkit.checkpoints.conversion.convert",
    "list_models": "detrkit.checkpoints.zoo",
    "load_official_state_dict": "detrkit.checkpoints.conversion.official",
    "state_dict_as_official": "detrkit.checkpoints.conversion.official",
    "DatasetReport": "detrkit.data.checks.examine",
    "examine": "detrkit.data.checks.examine",
    "DatasetSplits": "detrkit.data.dataset",
    "load_dataset": "detrkit.data.splits",
    "CheckpointError": "detrkit.errors",
    "ConfigError": "detrkit.errors",
    "DatasetError": "detrkit.errors",
    "DetrkitError": "detrkit.errors",
    "ExportError": "detrkit.errors",
    "evaluate": "detrkit.evaluation.evaluate",
    "EvalResult": "detrkit.evaluation.result",
    "Detector": "detrkit.inference.detector",
    "predict_files": "detrkit.inference.predict",
    "SetCriterion": "detrkit.losses.criterion",
    "DETR": "detrkit.models.detr",
    "ModelConfig": "detrkit.config.model",
    "build_model": "detrkit.models.presets",
    "Callback": "detrkit.training.callbacks",
    "TrainResult": "detrkit.training.result",
    "train": "detrkit.training.train",
    "resume": "detrkit.training.train",
    "Annotations": "detrkit.structures",
    "Batch": "detrkit.structures",
    "Detection": "detrkit.structures",
    "Detections": "detrkit.structures",
    "Predictions": "detrkit.structures",
    "Sample": "detrkit.structures",
    "Target": "detrkit.structures",
}

_CALLABLE_PACKAGES = ("benchmark", "explain", "export")  # see `_internal.callable_module`

__all__ = [*_HOME_OF, *_CALLABLE_PACKAGES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_PACKAGES:
        return import_module(f"detrkit.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'detrkit' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
