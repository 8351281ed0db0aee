"""Published RT-DETR, RT-DETRv2, D-FINE, DEIM, RT-DETRv4 and DEIMv2: numbers and sources. Light: imports no torch."""

_RTDETR = "https://github.com/lyuwenyu/storage/releases/download/"
_DFINE = "https://github.com/Peterande/storage/releases/download/dfinev1.0/"
_DRIVE = "https://drive.google.com/file/d/{}/view"

REALTIME_FAMILIES = {
    "rtdetrv2": "RT-DETRv2",
    "rtdetrv4": "RT-DETRv4",
    "rtdetr": "RT-DETR",
    "dfine": "D-FINE",
    "deimv2": "DEIMv2",
    "deim": "DEIM",
}
# the authors' weights in Hugging Face's format, as safetensors
REALTIME_HUB_MODELS = {
    "rtdetr-r18": "PekingU/rtdetr_r18vd",
    "rtdetr-r34": "PekingU/rtdetr_r34vd",
    "rtdetr-r50": "PekingU/rtdetr_r50vd",
    "rtdetr-r101": "PekingU/rtdetr_r101vd",
    "rtdetr-r18-obj2coco": "PekingU/rtdetr_r18vd_coco_o365",
    "rtdetr-r50-obj2coco": "PekingU/rtdetr_r50vd_coco_o365",
    "rtdetr-r101-obj2coco": "PekingU/rtdetr_r101vd_coco_o365",
    "rtdetrv2-s": "PekingU/rtdetr_v2_r18vd",
    "rtdetrv2-ms": "PekingU/rtdetr_v2_r34vd",
    "rtdetrv2-l": "PekingU/rtdetr_v2_r50vd",
    "rtdetrv2-x": "PekingU/rtdetr_v2_r101vd",
    "dfine-n": "ustc-community/dfine-nano-coco",
    "dfine-s": "ustc-community/dfine-small-coco",
    "dfine-m": "ustc-community/dfine-medium-coco",
    "dfine-l": "ustc-community/dfine-large-coco",
    "dfine-x": "ustc-community/dfine-xlarge-coco",
    "dfine-s-obj365": "ustc-community/dfine-small-obj365",
    "dfine-m-obj365": "ustc-community/dfine-medium-obj365",
    "dfine-l-obj365": "ustc-community/dfine-large-obj365",
    "dfine-x-obj365": "ustc-community/dfine-xlarge-obj365",
    "dfine-s-obj2coco": "ustc-community/dfine-small-obj2coco",
    "dfine-m-obj2coco": "ustc-community/dfine-medium-obj2coco",
    "dfine-x-obj2coco": "ustc-community/dfine-xlarge-obj2coco",
    # in the names of their authors
    "deimv2-atto": "Intellindust/DEIMv2_HGNetv2_ATTO_COCO",
    "deimv2-femto": "Intellindust/DEIMv2_HGNetv2_FEMTO_COCO",
    "deimv2-pico": "Intellindust/DEIMv2_HGNetv2_PICO_COCO",
    "deimv2-n": "Intellindust/DEIMv2_HGNetv2_N_COCO",
}
# files of the authors for which there is no safetensors file; their names hold no hash
REALTIME_FILES = {
    "rtdetr-r50-m": f"{_RTDETR}v0.1/rtdetr_r50vd_m_6x_coco_from_paddle.pth",
    "rtdetrv2-m": f"{_RTDETR}v0.1/rtdetrv2_r50vd_m_7x_coco_ema.pth",
    "rtdetrv2-s-dsp": f"{_RTDETR}v0.1/rtdetrv2_r18vd_dsp_3x_coco.pth",
    "rtdetrv2-ms-dsp": f"{_RTDETR}v0.1/rrtdetrv2_r34vd_dsp_1x_coco.pth",  # so it is called there
    "rtdetrv2-m-dsp": f"{_RTDETR}v0.1/rtdetrv2_r50vd_m_dsp_3x_coco.pth",
    "rtdetrv2-l-dsp": f"{_RTDETR}v0.1/rtdetrv2_r50vd_dsp_1x_coco.pth",
    "rtdetrv2-s-sp1": f"{_RTDETR}v0.1/rtdetrv2_r18vd_sp1_120e_coco.pth",
    "rtdetrv2-s-sp2": f"{_RTDETR}v0.1/rtdetrv2_r18vd_sp2_120e_coco.pth",
    "rtdetrv2-s-sp3": f"{_RTDETR}v0.1/rtdetrv2_r18vd_sp3_120e_coco.pth",
    "dfine-l-obj2coco": f"{_DFINE}dfine_l_obj2coco_e25.pth",
}
# pages of files that only a browser can download
REALTIME_PAGES = {
    name: _DRIVE.format(number)
    for name, number in {
        "deim-dfine-n": "1ZPEhiU9nhW4M5jLnYOFwTSLQC1Ugf62e",
        "deim-dfine-s": "1tB8gVJNrfb6dhFvoHJECKOF5VpkthhfC",
        "deim-dfine-m": "18Lj2a6UN6k_n_UzqnJyiaiLGpDzQQit8",
        "deim-dfine-l": "1PIRf02XkrA2xAD3wEiKE2FaamZgSGTAr",
        "deim-dfine-x": "1dPtbgtGgq1Oa7k_LgH1GXPelg1IVeu0j",
        "deim-dfine-x-obj2coco": "1RMNrHh3bYN0FfT5ZlWhXtQxkG23xb2xj",
        "deim-rtdetrv2-s": "153_JKff6EpFgiLKaqkJsoDcLal_0ux_F",
        "deim-rtdetrv2-ms": "1O9RjZF6kdFWGv1Etn1Toml4r-YfdMDMM",
        "deim-rtdetrv2-m": "10dLuqdBZ6H5ip9BbBiE6S7ZcmHkRbD0E",
        "deim-rtdetrv2-l": "1mWknAXD5JYknUQ94WCEvPfXz13jcNOTI",
        "deim-rtdetrv2-x": "1BIevZijOcBO17llTyDX32F_pYppBfnzu",
        "rtdetrv4-s": "1jDAVxblqRPEWed7Hxm6GwcEl7zn72U6z",
        "rtdetrv4-m": "1O-YpP4X-quuOXbi96y2TKkztbjroP5mX",
        "rtdetrv4-l": "1shO9EzZvXZyKedE2urLsN4dwEv8Jqa_8",
        "rtdetrv4-x": "19gnkMTgFveJsrOvSmEPQXCTG6v9oQHN3",
    }.items()
}
_RTDETR_PARAMETERS = {
    "r18": 20_184_464,
    "r34": 31_441_668,
    "r50-m": 36_593_772,
    "r50": 42_891_372,
    "r101": 76_556_268,
}
_V2_PARAMETERS = dict(zip(("s", "ms", "m", "l", "x"), _RTDETR_PARAMETERS.values(), strict=True))
_DFINE_PARAMETERS = {"n": 3_782_693, "s": 10_321_877, "m": 19_590_064, "l": 31_244_152, "x": 62_621_560}
_OBJ365_PARAMETERS = {"s": 10_689_101, "m": 20_030_790, "l": 31_831_882, "x": 63_209_290}
# DEIM trains the norms of the backbone, which are buffers if they are frozen
_DEIM_PARAMETERS = {**_DFINE_PARAMETERS, "l": 31_289_848, "x": 62_715_480}
_DEIM_V2_PARAMETERS = {"s": 20_183_440, "ms": 31_440_644, "m": 33_198_864, "l": 42_943_596, "x": 76_660_716}
_V4_PARAMETERS = {"s": 10_519_253, "m": 19_787_440, "l": 31_487_224, "x": 63_011_160}


def _named(name: str, numbers: dict[str, int], sizes: tuple[str, ...] | None = None) -> dict[str, int]:
    return {name.format(size): number for size, number in numbers.items() if sizes is None or size in sizes}


REALTIME_PARAMETERS = {
    **_named("rtdetr-{}", _RTDETR_PARAMETERS),
    **_named("rtdetr-{}-obj2coco", _RTDETR_PARAMETERS, ("r18", "r50", "r101")),
    **_named("rtdetrv2-{}", _V2_PARAMETERS),
    **_named("rtdetrv2-{}-dsp", _V2_PARAMETERS, ("s", "ms", "m", "l")),
    "rtdetrv2-s-sp1": 20_017_928,
    "rtdetrv2-s-sp2": 20_073_440,
    "rtdetrv2-s-sp3": 20_128_952,
    **_named("dfine-{}", _DFINE_PARAMETERS),
    **_named("dfine-{}-obj365", _OBJ365_PARAMETERS),
    **_named("dfine-{}-obj2coco", _DFINE_PARAMETERS, ("s", "m", "l", "x")),
    **_named("deim-dfine-{}", _DEIM_PARAMETERS),
    "deim-dfine-x-obj2coco": _DEIM_PARAMETERS["x"],
    **_named("deim-rtdetrv2-{}", _DEIM_V2_PARAMETERS),
    **_named("rtdetrv4-{}", _V4_PARAMETERS),
    "deimv2-atto": 508_985,
    "deimv2-femto": 983_945,
    "deimv2-pico": 1_539_539,
    "deimv2-n": 3_600_421,
}
# AP of the boxes on COCO val2017: READMEs of lyuwenyu/RT-DETR (of the PyTorch files), Peterande/D-FINE,
# Intellindust-AI-Lab/DEIM, RT-DETRs/RT-DETRv4 and Intellindust-AI-Lab/DEIMv2
REALTIME_AP = {
    "rtdetr-r18": 0.464,
    "rtdetr-r34": 0.489,
    "rtdetr-r50-m": 0.513,
    "rtdetr-r50": 0.531,
    "rtdetr-r101": 0.543,
    "rtdetr-r18-obj2coco": 0.490,
    "rtdetr-r50-obj2coco": 0.552,
    "rtdetr-r101-obj2coco": 0.562,
    "rtdetrv2-s": 0.481,
    "rtdetrv2-ms": 0.499,
    "rtdetrv2-m": 0.519,
    "rtdetrv2-l": 0.534,
    "rtdetrv2-x": 0.543,
    "rtdetrv2-s-dsp": 0.474,
    "rtdetrv2-ms-dsp": 0.492,
    "rtdetrv2-m-dsp": 0.514,
    "rtdetrv2-l-dsp": 0.529,
    "rtdetrv2-s-sp1": 0.473,
    "rtdetrv2-s-sp2": 0.477,
    "rtdetrv2-s-sp3": 0.478,
    "dfine-n": 0.428,
    "dfine-s": 0.485,
    "dfine-m": 0.523,
    "dfine-l": 0.540,
    "dfine-x": 0.558,
    "dfine-s-obj2coco": 0.507,
    "dfine-m-obj2coco": 0.551,
    "dfine-l-obj2coco": 0.573,
    "dfine-x-obj2coco": 0.593,
    "deim-dfine-n": 0.430,
    "deim-dfine-s": 0.490,
    "deim-dfine-m": 0.527,
    "deim-dfine-l": 0.547,
    "deim-dfine-x": 0.565,
    "deim-dfine-x-obj2coco": 0.595,
    "deim-rtdetrv2-s": 0.490,
    "deim-rtdetrv2-ms": 0.509,
    "deim-rtdetrv2-m": 0.532,
    "deim-rtdetrv2-l": 0.543,
    "deim-rtdetrv2-x": 0.555,
    "rtdetrv4-s": 0.498,
    "rtdetrv4-m": 0.537,
    "rtdetrv4-l": 0.554,
    "rtdetrv4-x": 0.570,
    "deimv2-atto": 0.238,
    "deimv2-femto": 0.310,
    "deimv2-pico": 0.385,
    "deimv2-n": 0.430,
}
