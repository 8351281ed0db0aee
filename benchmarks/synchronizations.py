"""Copies from the GPU to the host in a training step, for every architecture; no GPU is needed.

    python -m benchmarks.synchronizations [--precision bfloat16]

Takes a training step of each preset's architecture on a simulated CUDA device (`tests/fake_cuda.py`), with two images of
different sizes, gradient clipping and a moving average, and prints what is copied from the device to the host, and where. A
copy for which the host waits is a synchronisation: the GPU idles until the host has caught up.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch
from tests.fake_cuda import Transfers, fake_cuda

from detrkit.config.model import ModelConfig
from detrkit.config.training import TrainingConfig
from detrkit.models.build import model_from_config
from detrkit.models.presets import PRESETS
from detrkit.structures import Batch, Target
from detrkit.training.build import build_criterion
from detrkit.training.train_step import TrainStep

NUM_CLASSES = 4
SIZES = [(64, 96), (48, 64)]


def architectures() -> Iterator[tuple[str, ModelConfig]]:
    """Yield the architecture of every preset with few layers, with the name of its first preset.

    Numbers of layers, channels and points, the backbone and its norms do not change what a step copies.
    """
    seen = set()
    for name, config in PRESETS.items():
        small = config.model_copy(
            update={
                "num_classes": NUM_CLASSES,
                "backbone": "resnet-tiny" if config.has_published_backbone else config.backbone,
                "encoder_layers": min(1, config.encoder_layers),
                "decoder_layers": min(2, config.decoder_layers),
                "dilation": False,
            }
        )
        parts = small.model_dump(exclude={"backbone_normalization"}).values()
        kind = tuple(part if isinstance(part, str | bool) else None for part in parts)
        if kind not in seen:
            seen.add(kind)
            yield name, small


def make_batch(with_masks: bool = False) -> Batch:
    """Return two images of different sizes on the CPU, with three objects and none."""
    targets = [
        Target(
            torch.rand(count, 4) * 0.4 + 0.3,
            torch.arange(count) % NUM_CLASSES,
            torch.ones(count, *size, dtype=torch.bool) if with_masks else None,
        )
        for count, size in zip((3, 0), SIZES, strict=True)
    ]
    padding_mask = torch.ones(2, *SIZES[0], dtype=torch.bool)
    for index, (height, width) in enumerate(SIZES):
        padding_mask[index, :height, :width] = False
    return Batch(torch.randn(2, 3, *SIZES[0]), padding_mask, targets, [1, 2], SIZES, SIZES)


def count_transfers(config: ModelConfig, settings: TrainingConfig, steps: int = 2) -> Transfers:
    """Take training steps on a simulated CUDA device; return the transfers of the last one."""
    model = model_from_config(config)
    with fake_cuda() as transfers:
        train_step = TrainStep(model, build_criterion(config, settings), settings, torch.device("cuda"), steps)
        train_step.train()
        batch = make_batch(config.mask_head).to("cuda")
        for _ in range(steps):
            transfers.clear()
            train_step.step([batch])
        in_step = replace(transfers, to_host=[*transfers.to_host], to_device=[*transfers.to_device])
        train_step.finish()
    return in_step


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    settings = TrainingConfig(clip_grad_norm=0.1, ema_decay=0.9, precision=parser.parse_args().precision)
    for name, config in architectures():
        copies = count_transfers(config, settings).to_host
        places = ", ".join(f"{one.place}{'' if one.blocks else ' (does not wait)'}" for one in copies)
        print(f"{name:32} {len(copies)} copies, {sum(one.blocks for one in copies)} waits: {places}")


if __name__ == "__main__":
    main()
