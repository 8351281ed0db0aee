"""Names of published models that are left out, and why. Importing this module does not import torch."""

from collections.abc import Mapping

DINOV3_LICENCE = (
    "its backbone derives from DINOv3, whose licence is not open source; the largest under Apache-2.0 is 'deimv2-n'"
)
_PLATFORM_LICENCE = (
    "its weights are under the Platform Model License 1.0, which is not open source; the largest under Apache-2.0 is "
    "'rfdetr-large'"
)
REFUSED_PRESETS: Mapping[str, str] = {
    **{f"deimv2-{size}": DINOV3_LICENCE for size in ("s", "m", "l", "x")},
    **{f"rfdetr-{size}": _PLATFORM_LICENCE for size in ("xlarge", "2xlarge", "xl", "2xl")},
}
