"""The table of all targets."""

from tests.fuzz import checkpoint_targets, dataset_targets, export_targets, request_targets, result_targets
from tests.fuzz.target import Target

_MODULES = (dataset_targets, checkpoint_targets, export_targets, request_targets, result_targets)
TARGETS: dict[str, Target] = {one.name: one for module in _MODULES for one in module.TARGETS}
