"""Names of models, and their published weights: numbers, sources, hashes and licences. Light: imports no torch."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex, overload

from detrkit.checkpoints.hashes import Check, check_of_file, check_of_hub, file_name
from detrkit.checkpoints.zoo_foundation import (
    FOUNDATION_AP,
    FOUNDATION_FAMILIES,
    FOUNDATION_FILES,
    FOUNDATION_PARAMETERS,
)
from detrkit.checkpoints.zoo_realtime import (
    REALTIME_AP,
    REALTIME_FAMILIES,
    REALTIME_FILES,
    REALTIME_HUB_MODELS,
    REALTIME_PAGES,
    REALTIME_PARAMETERS,
)

_DETR = "https://dl.fbaipublicfiles.com/detr/"
# official weights of DETR; file names end in the first digits of their SHA-256
OFFICIAL_FILES = {
    "detr-r50": "detr-r50-e632da11.pth",
    "detr-r50-dc5": "detr-r50-dc5-f0fb7ef5.pth",
    "detr-r101": "detr-r101-2c7b67e5.pth",
    "detr-r101-dc5": "detr-r101-dc5-a2e86def.pth",
    "detr-r50-panoptic": "detr-r50-panoptic-00ce5173.pth",
    "detr-r50-dc5-panoptic": "detr-r50-dc5-panoptic-da08f1b1.pth",
    "detr-r101-panoptic": "detr-r101-panoptic-40021d53.pth",
}
# official weights of later architectures, converted to Hugging Face's format
HUB_MODELS = {
    "conditional-detr-r50": "microsoft/conditional-detr-resnet-50",
    "dab-detr-r50": "IDEA-Research/dab-detr-resnet-50",
    "dab-detr-r50-dc5": "IDEA-Research/dab-detr-resnet-50-dc5",
    "deformable-detr-r50": "SenseTime/deformable-detr",
    "deformable-detr-r50-single-scale": "SenseTime/deformable-detr-single-scale",
    "deformable-detr-r50-single-scale-dc5": "SenseTime/deformable-detr-single-scale-dc5",
    "deformable-detr-r50-refine": "SenseTime/deformable-detr-with-box-refine",
    "deformable-detr-r50-two-stage": "SenseTime/deformable-detr-with-box-refine-two-stage",
    "table-transformer-detection": "microsoft/table-transformer-detection",
    "table-transformer-structure-recognition": "microsoft/table-transformer-structure-recognition",
    **REALTIME_HUB_MODELS,
}
# files of the authors of later architectures
LATER_FILES = {**REALTIME_FILES, **FOUNDATION_FILES}
_TORCHVISION = "https://download.pytorch.org/models/"
_IMAGENET_FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}
# without hashes in their names
_RTDETR = "https://github.com/lyuwenyu/storage/releases/download/v0.1/"
_DFINE = "https://github.com/Peterande/storage/releases/download/dfinev1.0/"
IMAGENET_URLS = {
    **{name: _TORCHVISION + file for name, file in _IMAGENET_FILES.items()},
    "resnet18-vd": f"{_RTDETR}ResNet18_vd_pretrained_from_paddle.pth",
    "resnet34-vd": f"{_RTDETR}ResNet34_vd_pretrained_from_paddle.pth",
    "resnet50-vd": f"{_RTDETR}ResNet50_vd_ssld_v2_pretrained_from_paddle.pth",
    "resnet101-vd": f"{_RTDETR}ResNet101_vd_ssld_pretrained_from_paddle.pth",
    **{f"hgnetv2-b{size}": f"{_DFINE}PPHGNetV2_B{size}_stage1.pth" for size in range(7)},
    # as published: those of B0, of which their stages are parts
    **{f"hgnetv2-{size}": f"{_DFINE}PPHGNetV2_B0_stage1.pth" for size in ("atto", "femto", "pico")},
}


@dataclass(frozen=True)
class ModelInfo:
    """A model that `detrkit.build_model` knows by name.

    Attributes:
        name: of the preset.
        family: architecture: "DETR", "Conditional DETR", "DAB-DETR", "Deformable DETR", "Table Transformer", "RT-DETR",
            "RT-DETRv2", "D-FINE", "DEIM", "RT-DETRv4", "DEIMv2", "LW-DETR", "RF-DETR" or "detrkit".
        parameters: number of parameters, with the preset's number of classes.
        ap: published AP of the boxes on COCO val2017, 0..1; None if it is unknown.
        code_licence: of the authors' code (SPDX); None if not known here.
        weights_licence: of the published weights (SPDX), as stated where they are downloaded; None if unknown or none.
        source: address of the weights that the name loads; None if none were published.
        checked_by: how the download is checked: by the full SHA-256, the first digits of it, the MD5, or the SHA-256 of the
            first download, which is recorded in the cache; None without weights.
    """

    name: str
    family: str
    parameters: int
    ap: float | None
    code_licence: str | None
    weights_licence: str | None
    source: str | None
    checked_by: Check | None = None


class ModelList(Sequence[ModelInfo]):
    """A list of models that shows itself as a table."""

    def __init__(self, models: Sequence[ModelInfo]) -> None:
        self._models = tuple(models)

    @overload
    def __getitem__(self, index: SupportsIndex) -> ModelInfo: ...
    @overload
    def __getitem__(self, index: slice) -> "ModelList": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "ModelInfo | ModelList":
        """Return one model, or a list of a slice of them."""
        return ModelList(self._models[index]) if isinstance(index, slice) else self._models[index]

    def __len__(self) -> int:
        return len(self._models)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table as texts, the heads first."""
        heads = ("name", "family", "parameters", "AP", "code", "weights", "checked by", "source")
        return [heads, *(_cells(model) for model in self._models)]

    def __repr__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = (zip(row, widths, strict=True) for row in rows)
        return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        heads, *rows = self.rows()
        lines = [_html_row(heads, "th"), *(_html_row(row, "td") for row in rows)]
        return f"<table>{''.join(lines)}</table>"


def official_url(preset: str) -> str:
    """Return the address of the official weights file of a preset of `OFFICIAL_FILES` or `LATER_FILES`."""
    return LATER_FILES[preset] if preset in LATER_FILES else _DETR + OFFICIAL_FILES[preset]


def imagenet_url(backbone: str) -> str | None:
    """Return the address of the ImageNet weights of a backbone, or None if it has none."""
    return IMAGENET_URLS.get(backbone)


def list_models() -> ModelList:
    """List the models that can be built by name.

    Returns:
        A list of `ModelInfo`: name, family, parameters, published AP, licences of code and weights, source.
    """
    return ModelList([_model_info(name) for name in MODEL_NAMES])


# with the preset's number of classes; tests/checkpoints/test_zoo.py counts them again
_PARAMETERS = {
    "detr-r50": 41_524_768,
    "detr-r50-panoptic": 42_899_288,
    "detr-r50-dc5": 41_524_768,
    "detr-r50-dc5-panoptic": 42_899_288,
    "detr-r101": 60_464_672,
    "detr-r101-panoptic": 61_839_192,
    "detr-r101-dc5": 60_464_672,
    "detr-r101-dc5-panoptic": 61_839_192,
    "conditional-detr-r50": 43_418_401,
    "conditional-detr-r50-dc5": 43_418_401,
    "conditional-detr-r101": 62_358_305,
    "conditional-detr-r101-dc5": 62_358_305,
    "dab-detr-r50": 43_671_517,
    "dab-detr-r50-dc5": 43_671_517,
    "dab-detr-r101": 62_611_421,
    "dab-detr-r101-dc5": 62_611_421,
    "deformable-detr-r50": 40_069_665,
    "deformable-detr-r50-single-scale": 34_066_593,
    "deformable-detr-r50-single-scale-dc5": 34_066_593,
    "deformable-detr-r50-refine": 40_849_660,
    "deformable-detr-r50-two-stage": 41_181_529,
    "detr-r18": 28_843_552,
    "table-transformer-detection": 28_799_431,
    "table-transformer-structure-recognition": 28_828_619,
    **REALTIME_PARAMETERS,
    **FOUNDATION_PARAMETERS,
    "detr-tiny": 1_567_104,
    "detrkit-s": 1_376_348,
    "detrkit-m": 16_098_748,
}
MODEL_NAMES = tuple(_PARAMETERS)
# AP of the boxes on COCO val2017. DETR: model zoo in the README of facebookresearch/detr (500 epochs). Conditional DETR:
# README of Atten4Vis/ConditionalDETR (50 epochs). Deformable DETR: README of fundamentalvision/Deformable-DETR (50
# epochs). DAB-DETR: paper (arXiv 2201.12329), 50 epochs.
_AP = {
    "detr-r50": 0.420,
    "detr-r50-dc5": 0.433,
    "detr-r101": 0.435,
    "detr-r101-dc5": 0.449,
    "detr-r50-panoptic": 0.388,
    "detr-r50-dc5-panoptic": 0.402,
    "detr-r101-panoptic": 0.401,
    "conditional-detr-r50": 0.410,
    "conditional-detr-r50-dc5": 0.437,
    "conditional-detr-r101": 0.428,
    "conditional-detr-r101-dc5": 0.450,
    "dab-detr-r50": 0.422,
    "deformable-detr-r50": 0.445,
    "deformable-detr-r50-single-scale": 0.394,
    "deformable-detr-r50-single-scale-dc5": 0.415,
    "deformable-detr-r50-refine": 0.462,
    "deformable-detr-r50-two-stage": 0.469,
    **REALTIME_AP,
    **FOUNDATION_AP,
}
_FAMILIES = {
    "detr-tiny": "detrkit",
    "detrkit": "detrkit",
    "conditional-detr": "Conditional DETR",
    "dab-detr": "DAB-DETR",
    "deformable-detr": "Deformable DETR",
    "table-transformer": "Table Transformer",
    **REALTIME_FAMILIES,
    **FOUNDATION_FAMILIES,
    "detr": "DETR",
}
# LICENSE files of the authors' repositories, and of detrkit
_CODE_LICENCES = {**dict.fromkeys(_FAMILIES.values(), "Apache-2.0"), "Table Transformer": "MIT"}


def _model_info(name: str) -> ModelInfo:
    family = next(family for prefix, family in _FAMILIES.items() if name.startswith(prefix))
    hub_id = HUB_MODELS.get(name)
    source = f"https://huggingface.co/{hub_id}" if hub_id else None
    # the same as the code's, as stated on the model cards, and in the READMEs of facebookresearch/detr and roboflow/rf-detr
    licence, checked_by = _CODE_LICENCES[family], check_of_hub(hub_id) if hub_id else None
    weights_licence = licence if hub_id or name in OFFICIAL_FILES or family == "RF-DETR" else None
    if name in OFFICIAL_FILES or name in LATER_FILES:
        source = official_url(name)
        checked_by = check_of_file(file_name(source))
    source = REALTIME_PAGES.get(name, source)
    return ModelInfo(name, family, _PARAMETERS[name], _AP.get(name), licence, weights_licence, source, checked_by)


def _cells(model: ModelInfo) -> tuple[str, ...]:
    ap = "-" if model.ap is None else f"{model.ap:.3f}"
    rest = (model.code_licence or "-", model.weights_licence or "-", model.checked_by or "-", model.source or "-")
    return (model.name, model.family, f"{model.parameters / 1e6:.1f} M", ap, *rest)


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
