"""`detrkit benchmark`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def benchmark(
    *sources: str,
    size: str = "800x1066",
    batch_size: int = 1,
    rounds: int = 10,
    precision: Literal["both", "float32", "bfloat16"] = "both",
    rivals: bool = True,
    device: str = "auto",
    threads: int | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> None:
    """Measure models on this machine: speed by stage, parameters, GFLOPs and memory, side by side.

    Each has a process of its own, and they take turns, so that a busy moment of the machine hurts all alike. Rivals are
    the same model in `transformers`, where it is installed, and torchvision's Faster R-CNN.

    Example: `detrkit benchmark runs/first model.onnx --size 640x640 --output speed`

    Parameters
    ----------
    sources
        Presets (timed with random weights), run folders, weights files, exported files; detr-r50 when not given.
    size
        Of the photos as the model gets them, HEIGHTxWIDTH in pixels.
    batch_size
        Photos at a time.
    rounds
        Times that each is measured; the middle one counts.
    precision
        Of models in PyTorch; bfloat16 is left out where the processor has none.
    rivals
        Measure transformers and Faster R-CNN, too.
    device
        `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one.
    threads
        On a CPU; all cores when not given.
    output
        Folder for page, plot and JSON.
    """
    from detrkit.benchmark.cases import BenchmarkConfig
    from detrkit.benchmark.describe import parse_size
    from detrkit.benchmark.run import benchmark as run_benchmark
    from detrkit.distributed.devices import choose_device

    run_benchmark(
        sources or ("detr-r50",),
        BenchmarkConfig(parse_size(size), batch_size, str(choose_device(device)), threads),
        rounds=rounds,
        precisions=("float32", "bfloat16") if precision == "both" else (precision,),
        rivals=rivals,
        output=output,
    )
