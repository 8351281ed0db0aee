"""Size of the images that a model is measured with unless another is asked for."""

from pathlib import Path

from detrkit.checkpoints.export_formats import is_exported
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.named_model import NamedModel
from detrkit.checkpoints.native import Preprocessing
from detrkit.config.model import ModelConfig
from detrkit.inference.engines.load import load_exported
from detrkit.models.presets import PRESETS


def usual_size(config: ModelConfig, preprocessing: Preprocessing | None = None) -> tuple[int, int]:
    """Return the (height, width) to which a model stretches all images, or else that of published speeds and FLOPs."""
    if preprocessing is not None and preprocessing.resize == "stretch" and preprocessing.size is not None:
        return preprocessing.size
    return config.published_size


def usual_size_of(source: str, model: NamedModel | None, state_dict_key: str | None) -> tuple[int, int]:
    """Return the same of a preset, run folder, weights file or exported file; arguments as those of `benchmark`.

    Raises:
        DetrkitError: there is no such model.
    """
    if source in PRESETS and not Path(source).exists():
        return usual_size(PRESETS[source])
    if is_exported(source):
        metadata = load_exported(Path(source)).metadata
        return usual_size(metadata.model, metadata.preprocessing)
    is_file = Path(source).is_file()
    checkpoint = load_checkpoint(
        source, model=model if is_file else None, state_dict_key=state_dict_key if is_file else None
    )
    return usual_size(checkpoint.config, checkpoint.preprocessing)
