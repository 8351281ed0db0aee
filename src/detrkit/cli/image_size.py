"""Image sizes on the command line."""

import re

from detrkit.errors import ConfigError, arg

_SIZE = re.compile(r"(\d{2,5})x(\d{2,5})")


def parse_size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH to (height, width).

    Raises:
        ConfigError: the text is something else.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if not match or not all(int(side) for side in match.groups()):
        raise ConfigError(f"{arg('size', text)} is not a size; expected HEIGHTxWIDTH in pixels, for example 800x1066.")
    return int(match[1]), int(match[2])
