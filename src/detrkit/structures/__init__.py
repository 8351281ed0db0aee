"""Data that passes between the packages: annotations, batches, predictions, detections.

Boxes are xyxy in pixels in `Annotations`, `Sample` and `Detections`, and cxcywh relative to the image without padding in
`Target` and `Predictions`; `data.batching` and `postprocess.boxes` convert. Sizes are (height, width). A padding mask is
True on padding.
"""

from detrkit.structures.annotations import Annotations, Sample, Target
from detrkit.structures.batch import Batch
from detrkit.structures.detections import Detection, Detections, LowResMasks
from detrkit.structures.normalization import Normalization
from detrkit.structures.panoptic import PanopticSegment, PanopticSegments
from detrkit.structures.predictions import (
    AuxiliaryKind,
    AuxiliaryPredictions,
    ClassScores,
    ComputedMasks,
    EdgeDistributions,
    EncoderProposals,
    LayerMaskSource,
    MaskSource,
    Predictions,
)

__all__ = [
    "Annotations",
    "AuxiliaryKind",
    "AuxiliaryPredictions",
    "Batch",
    "ClassScores",
    "ComputedMasks",
    "Detection",
    "Detections",
    "EdgeDistributions",
    "EncoderProposals",
    "LayerMaskSource",
    "LowResMasks",
    "MaskSource",
    "Normalization",
    "PanopticSegment",
    "PanopticSegments",
    "Predictions",
    "Sample",
    "Target",
]
