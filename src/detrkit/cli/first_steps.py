"""First commands for a new user, printed by `detrkit` without arguments."""

from detrkit.cli.command_name import command_name

_STEPS = (
    ("demo", "train on drawn shapes, minutes"),
    ("doctor DATA", "check the dataset"),
    ("train DATA --dry-run", "show settings and duration"),
    ("--help", "all commands"),
)


def first_steps() -> str:
    """Return what to do first: a line about the data, and four commands."""
    name = command_name()
    width = max(len(step) for step, _ in _STEPS)
    lines = [f"  {name} {step:{width}}  {purpose}" for step, purpose in _STEPS]
    return "\n".join(["Start here. DATA is a folder in COCO, YOLO or Pascal VOC format, or shards.", *lines])
