"""Names of published models that are left out, and why. Importing this module does not import torch."""

from collections.abc import Mapping

DINOV3_LICENCE = (
    "its backbone derives from DINOv3, whose licence is not open source; the largest under Apache-2.0 is 'deimv2-n'"
)
REFUSED_PRESETS: Mapping[str, str] = {f"deimv2-{size}": DINOV3_LICENCE for size in ("s", "m", "l", "x")}
