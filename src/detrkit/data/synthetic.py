"""Drawn photos of shapes with exact boxes and masks: a dataset without files, for demos and tests.

Input: a seed and how many. Output: `Sample`s, each a function of (seed, index) alone, so that any number can be drawn in
any order by any process.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from detrkit.data.categories import Categories
from detrkit.structures import Annotations, Sample

SHAPES = Categories(ids=(1, 2, 3, 4), names=("circle", "square", "triangle", "star"))


@dataclass(frozen=True)
class DrawingStyle:
    """How the drawings vary."""

    size: int = 128  # pixels a side
    most_objects: int = 6
    smallest: float = 0.16  # diameter of the smallest shape, as a share of the side
    largest: float = 0.45
    clutter: int = 12  # strokes and specks that are no objects, at most
    least_visible: float = 0.6  # share of a shape that later shapes must leave uncovered


class DrawnShapes(Dataset[Sample]):
    """Photos of one to six shapes on cluttered grounds, some hidden behind others.

    A box is the box of what is visible, as annotators of photos draw it.
    """

    categories = SHAPES

    def __init__(self, count: int, seed: int, style: DrawingStyle | None = None) -> None:
        self.count = count
        self.seed = seed
        self.style = style or DrawingStyle()

    def __len__(self) -> int:
        return self.count

    def draw_all(self) -> list[Sample]:
        """Draw every photo, to be kept in memory."""
        return [self[index] for index in range(self.count)]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        random = np.random.default_rng([self.seed, index])
        style = self.style
        picture = _draw_ground(random, style)
        masks: list[np.ndarray] = []
        labels: list[int] = []
        for _ in range(int(random.integers(1, style.most_objects + 1))):
            label = int(random.integers(len(SHAPES)))
            mask = _draw_shape(random, style, label)
            if _hides_too_much(masks, mask, style.least_visible):
                continue
            masks = [behind & ~mask for behind in masks] + [mask]
            labels.append(label)
            picture[mask] = _draw_surface(random, style)[mask]
        noise = random.normal(0, random.uniform(0, 12), picture.shape)
        pixels = np.clip(picture + noise, 0, 255).astype(np.uint8)
        stacked = np.stack(masks)
        return Sample(
            image=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
            annotations=Annotations(_boxes_of(stacked), torch.tensor(labels), torch.from_numpy(stacked)),
            image_id=index + 1,
            original_size=(style.size, style.size),
        )


def _draw_ground(random: Generator, style: DrawingStyle) -> np.ndarray:
    """A smooth ground of changing colours, with strokes and specks on it."""
    ground = _smooth_colours(random, style.size, cells=int(random.integers(2, 7)), contrast=90)
    canvas = Image.fromarray(ground.astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(random.integers(0, style.clutter + 1))):
        colour = tuple(int(c) for c in random.integers(0, 256, 3))
        x, y, dx, dy = random.uniform(-0.3, 1.3, 4) * style.size
        if random.random() < 0.5:
            pen.line((x, y, dx, dy), fill=colour, width=1)
        else:
            radius = random.uniform(0.005, 0.025) * style.size
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(canvas).astype(np.float64)


def _draw_surface(random: Generator, style: DrawingStyle) -> np.ndarray:
    """What a shape is filled with: one colour, a little shaded, or striped."""
    surface = _smooth_colours(random, style.size, cells=2, contrast=25)
    if random.random() < 0.3:
        period = int(random.integers(4, 9))
        stripes = (np.indices((style.size, style.size)).sum(0) // period) % 2
        surface = surface + (stripes * random.uniform(-70, 70))[..., None]
    return surface


def _smooth_colours(random: Generator, size: int, cells: int, contrast: float) -> np.ndarray:
    colours = random.uniform(20, 235, 3) + random.uniform(-contrast, contrast, (cells, cells, 3))
    small = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float64)


def _draw_shape(random: Generator, style: DrawingStyle, label: int) -> np.ndarray:
    """The pixels of one shape, whole and inside the picture."""
    radius = random.uniform(style.smallest, style.largest) / 2 * style.size
    centre = random.uniform(radius + 1, style.size - radius - 1, 2)
    turn = random.uniform(0, 2 * np.pi)
    name = SHAPES.names[label]
    corners = {"circle": 48, "square": 4, "triangle": 3, "star": 10}[name]
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    reach = np.where(np.arange(corners) % 2, 0.45, 1.0) if name == "star" else np.ones(corners)
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    canvas = Image.new("1", (style.size, style.size))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=1)
    return np.asarray(canvas)


def _hides_too_much(masks: list[np.ndarray], new: np.ndarray, least_visible: float) -> bool:
    """Whether a shape would leave another with too little to be recognised by."""
    return any((behind & ~new).sum() < least_visible * behind.sum() for behind in masks)


def _boxes_of(masks: np.ndarray) -> torch.Tensor:
    """Boxes around the visible pixels, xyxy, right and bottom edges included."""
    boxes = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return torch.tensor(boxes, dtype=torch.float32)
