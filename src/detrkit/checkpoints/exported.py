"""Which files are exported networks, and no weights: by their names, and what lies in a folder."""

from pathlib import Path

NETWORK_FILE = "model.xml"  # of OpenVINO's folder
METADATA_FILE = "detrkit.json"


def is_exported(source: Path | str) -> bool:
    """Whether a source is an exported file or folder, going by its name and what lies in it."""
    path = Path(source)
    if path.is_dir():
        return (path / NETWORK_FILE).is_file() or (path / METADATA_FILE).is_file()
    return path.is_file() and path.suffix in (".onnx", ".pt2")
