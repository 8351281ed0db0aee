"""Detection transformers: train on your own images, evaluate, explain, export, serve.

The public names are imported on first use, so that ``import detrkit`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detrkit._version import __version__

if TYPE_CHECKING:
    from detrkit.benchmark.benchmark import benchmark
    from detrkit.benchmark.describe import describe_model
    from detrkit.checkpoints.conversion.convert import convert
    from detrkit.checkpoints.conversion.official import load_official_state_dict, state_dict_as_official
    from detrkit.checkpoints.zoo import list_models
    from detrkit.config.model import ModelConfig
    from detrkit.data.checks.examine import DatasetReport, examine
    from detrkit.data.dataset import DatasetSplits
    from detrkit.data.splits import load_dataset
    from detrkit.errors import CheckpointError, ConfigError, DatasetError, DetrkitError, ExportError
    from detrkit.evaluation.evaluate import evaluate
    from detrkit.evaluation.result import EvalResult
    from detrkit.explain.explain import explain
    from detrkit.export.export import export
    from detrkit.inference.detector import Detector
    from detrkit.inference.predict import predict_files
    from detrkit.losses.criterion import SetCriterion
    from detrkit.models.detr import DETR
    from detrkit.models.presets import build_model
    from detrkit.structures import Annotations, Batch, Detection, Detections, Predictions, Sample, Target
    from detrkit.training.callbacks import Callback
    from detrkit.training.result import TrainResult
    from detrkit.training.train import resume, train


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
