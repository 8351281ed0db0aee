"""Published LW-DETR and RF-DETR: numbers and sources. Light: imports no torch."""

_LWDETR = "https://huggingface.co/xbsu/LW-DETR/resolve/main/pretrain_weights/"
_RFDETR = "https://storage.googleapis.com/rfdetr/"

FOUNDATION_FAMILIES = {"lwdetr": "LW-DETR", "rfdetr": "RF-DETR"}
_SIZES = ("tiny", "small", "medium", "large", "xlarge")
_SEGMENTATION_SIZES = {"nano": "n", "small": "s", "medium": "m", "large": "l", "xlarge": "xl", "2xlarge": "2xl"}
# files of the authors
FOUNDATION_FILES = {
    **{f"lwdetr-{size}": f"{_LWDETR}LWDETR_{size}_60e_coco.pth" for size in _SIZES},
    **{f"lwdetr-{size}-obj365": f"{_LWDETR}LWDETR_{size}_30e_objects365.pth" for size in _SIZES},
    **{f"rfdetr-{size}": f"{_RFDETR}{size}_coco/checkpoint_best_regular.pth" for size in ("nano", "small", "medium")},
    "rfdetr-base": f"{_RFDETR}rf-detr-base-coco.pth",
    "rfdetr-large": f"{_RFDETR}rf-detr-large-2026.pth",
    "rfdetr-large-deprecated": f"{_RFDETR}rf-detr-large.pth",
    "rfdetr-seg-preview": f"{_RFDETR}rf-detr-seg-preview.pt",
    **{f"rfdetr-seg-{size}": f"{_RFDETR}rf-detr-seg-{short}-ft.pth" for size, short in _SEGMENTATION_SIZES.items()},
}
# names in the cache of files that are called alike
FOUNDATION_FILE_NAMES = {
    FOUNDATION_FILES[f"rfdetr-{size}"]: f"rf-detr-{size}.pth" for size in ("nano", "small", "medium")
}
# published by the authors of RF-DETR, by the names in the cache
FILE_MD5 = {
    "rf-detr-nano.pth": "fb6504cce7fbdc783f7a46991f07639f",
    "rf-detr-small.pth": "fb37061c1af7bace359c91b723a8d5c1",
    "rf-detr-medium.pth": "7223f764a87b863f02eb8d52bf0ce2ee",
    "rf-detr-base-coco.pth": "b4d3ce46099eaed50626ede388caf979",
    "rf-detr-large-2026.pth": "5cb72153541cbcb9aa6efa26222acc75",
    "rf-detr-large.pth": "992c8e862aa733a7bb2777e45d49f1a0",
    "rf-detr-seg-preview.pt": "e35820c28fb86080558123e47a5e49ca",
    "rf-detr-seg-n-ft.pth": "9995497791d0ff1664a1d9ddee9cfd20",
    "rf-detr-seg-s-ft.pth": "0a2a3006381d0c42853907e700eadd08",
    "rf-detr-seg-m-ft.pth": "a49af1562c3719227ad43d0ca53b4c7a",
    "rf-detr-seg-l-ft.pth": "275f7b094909544ed2841c94a677d07e",
    "rf-detr-seg-xl-ft.pth": "3693b35d0eea86ebb3e0444f4a611fba",
    "rf-detr-seg-2xl-ft.pth": "040bc3412af840fa8a47e0ff69b552ba",
}
_COCO = dict(zip(_SIZES, (12_052_002, 14_557_378, 28_237_378, 46_823_650, 118_033_378), strict=True))
_OBJECTS365 = dict(zip(_SIZES, (13_041_452, 15_546_828, 29_226_828, 48_305_900, 119_515_628), strict=True))
FOUNDATION_PARAMETERS = {
    **{f"lwdetr-{size}": count for size, count in _COCO.items()},
    **{f"lwdetr-{size}-obj365": count for size, count in _OBJECTS365.items()},
    "rfdetr-nano": 30_467_298,
    "rfdetr-small": 32_111_170,
    "rfdetr-medium": 33_687_458,
    "rfdetr-base": 32_174_530,
    "rfdetr-large": 33_933_218,
    "rfdetr-large-deprecated": 135_637_474,
    "rfdetr-seg-nano": 33_577_475,
    "rfdetr-seg-small": 33_711_107,
    "rfdetr-seg-medium": 35_694_259,
    "rfdetr-seg-large": 35_873_971,
    "rfdetr-seg-xlarge": 38_113_635,
    "rfdetr-seg-2xlarge": 38_648_163,
    "rfdetr-seg-preview": 34_153_555,
}
# AP of the boxes on COCO val2017: READMEs of Atten4Vis/LW-DETR and roboflow/rf-detr
FOUNDATION_AP = {
    "lwdetr-tiny": 0.426,
    "lwdetr-small": 0.480,
    "lwdetr-medium": 0.525,
    "lwdetr-large": 0.561,
    "lwdetr-xlarge": 0.583,
    "rfdetr-nano": 0.484,
    "rfdetr-small": 0.530,
    "rfdetr-medium": 0.547,
    "rfdetr-base": 0.533,
    "rfdetr-large": 0.565,
}
