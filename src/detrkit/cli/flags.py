"""How arguments of the Python API are called on the command line."""

_POSITIONAL = {"data": "DATA", "source": "SOURCE", "images": "IMAGE", "image": "IMAGE"}


def flag(name: str) -> str:
    """Return the flag of a Python argument or setting: ``batch_size`` is ``--batch-size``."""
    return _POSITIONAL.get(name) or f"--{name.replace('_', '-')}"


def flag_style(name: str, shown: str, text: str) -> str:
    """Render an argument named in an error message; an `detrkit.errors.ArgumentStyle`."""
    if text in ("True", "False"):
        return flag(name) if text == "True" else f"--no-{name.replace('_', '-')}"
    return f"{flag(name)} {text}" if text else flag(name)
