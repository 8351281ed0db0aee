"""Synthetic images of shapes with exact boxes and masks, for the demo and tests.

A sample depends on (seed, index) only, so that any number can be drawn in any order by any process.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.random import Generator
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset

from detrkit.data.categories import Categories
from detrkit.ops.segments import masks_to_boxes
from detrkit.structures import Annotations, Sample

SHAPES = Categories(ids=(1, 2, 3), names=("circle", "square", "triangle"))
SCENES = Categories(
    ids=(1, 2, 3, 4, 5, 6),
    names=(*SHAPES.names, "sky", "water", "grass"),
    is_thing=(True, True, True, False, False, False),
)
_STUFF_COLORS = {"sky": (205, 222, 240), "water": (70, 105, 160), "grass": (105, 140, 70)}  # before random changes
_MIN_REGION = 0.01  # fraction of the image that must be visible


@dataclass(frozen=True)
class SyntheticStyle:
    """Range of the drawings."""

    size: int = 128  # pixels a side
    max_objects: int = 6
    min_size: float = 0.22  # diameter of the circle around the smallest shape, as a fraction of the side
    max_size: float = 0.45
    tilt: float = 20.0  # degrees by which a shape may be rotated either way
    max_clutter: int = 12  # maximum number of strokes and specks, which are not objects
    min_visible: float = 0.6  # fraction of a shape that later shapes must leave uncovered
    stuff: bool = False  # the background is sky, water and grass, which are annotated


class SyntheticShapes(Dataset[Sample]):
    """Images of one to six shapes on a cluttered background, some partly hidden by others.

    A box surrounds the visible part of a shape. With `stuff`, every pixel belongs to a shape or to one of two or three
    background regions, which are the last annotations.
    """

    def __init__(self, count: int, seed: int, style: SyntheticStyle | None = None) -> None:
        self.count = count
        self.seed = seed
        self.style = style or SyntheticStyle()
        self.categories = SCENES if self.style.stuff else SHAPES

    def __len__(self) -> int:
        return self.count

    def draw_all(self) -> list[Sample]:
        """Draw all samples, to be kept in memory."""
        return [self[index] for index in range(self.count)]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        random = np.random.default_rng([self.seed, index])
        style = self.style
        regions = _draw_regions(random, style) if style.stuff else []
        pixels = _draw_background(random, style, regions)
        masks: list[np.ndarray] = []
        areas: list[int] = []  # of the whole shapes
        labels: list[int] = []
        for _ in range(int(random.integers(1, style.max_objects + 1))):
            label = int(random.integers(len(SHAPES)))
            mask = _draw_shape(random, style, label)
            if _covers_too_much(masks, areas, mask, style.min_visible):
                continue
            masks = [hidden & ~mask for hidden in masks] + [mask]
            areas.append(int(mask.sum()))
            labels.append(label)
            pixels[mask] = _draw_surface(random, style)[mask]
        noise = random.normal(0, random.uniform(0, 12), pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        shapes = np.any(masks, axis=0)
        for region in regions:
            if (visible := region.mask & ~shapes).sum() >= _MIN_REGION * visible.size:
                masks.append(visible)
                labels.append(region.label)
        stacked = torch.from_numpy(np.stack(masks))
        return Sample(
            image=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
            annotations=Annotations(masks_to_boxes(stacked), torch.tensor(labels), stacked),
            image_id=index + 1,
            original_size=(style.size, style.size),
        )


def repeat_channels(image: UInt8[Tensor, "3 H W"], channels: int) -> UInt8[Tensor, "C H W"]:
    """Repeat the color channels of an image to get a number of channels."""
    return image[[channel % len(image) for channel in range(channels)]]


def draw_identical_shapes(
    label: int, count: int, grid: int, random: Generator, style: SyntheticStyle, image_id: int
) -> Sample:
    """Draw several shapes of one class, each in its own cell of a grid (paper, appendix A.5).

    Args:
        label: of all shapes.
        count: number of shapes, at most `grid` squared.
        grid: cells per side; the cells with shapes are chosen at random.
        random: source of all randomness.
        style: of the drawing; shapes have the size of a cell instead of the style's.
        image_id: of the sample.
    """
    pixels = _draw_background(random, style)
    cell = style.size / grid
    masks = []
    for cell_index in random.choice(grid * grid, count, replace=False).tolist():
        center = (np.array([cell_index % grid, cell_index // grid]) + 0.5) * cell
        mask = _fill_shape(random, style, label, center, radius=0.45 * cell)
        pixels[mask] = _draw_surface(random, style)[mask]
        masks.append(mask)
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return Sample(
        image=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
        annotations=Annotations(masks_to_boxes(torch.from_numpy(np.stack(masks))), torch.full((count,), label)),
        image_id=image_id,
        original_size=(style.size, style.size),
    )


@dataclass(frozen=True)
class _Region:
    """A region of the background."""

    label: int
    mask: np.ndarray  # (H, W) bool


def _draw_regions(random: Generator, style: SyntheticStyle) -> list[_Region]:
    """Divide the background from top to bottom, along waves, into sky, sometimes water, and grass."""
    has_water = random.random() < 0.6
    names = ["sky", "water", "grass"] if has_water else ["sky", "grass"]
    borders = np.sort(random.uniform(0.2, 0.8, len(names) - 1))
    if has_water:
        borders = np.array([borders[0], max(borders[1], borders[0] + 0.15)])
    columns = np.arange(style.size) / style.size
    rows = np.indices((style.size, style.size))[0]
    above = np.zeros((style.size, style.size), dtype=bool)
    regions = []
    for name, height in zip(names, [*borders, 2.0], strict=True):
        waves, phase, depth = random.uniform(0.5, 3), random.uniform(0, 2 * np.pi), random.uniform(0, 0.06)
        edge = (height + depth * np.sin(2 * np.pi * waves * columns + phase)) * style.size
        inside = (rows < edge) & ~above
        above |= inside
        regions.append(_Region(SCENES.names.index(name), inside))
    return regions


def _draw_background(random: Generator, style: SyntheticStyle, regions: Sequence[_Region] = ()) -> np.ndarray:
    """Draw a mottled background in pale colors, or in those of its regions, with strokes and specks of any color."""
    if regions:
        background = np.zeros((style.size, style.size, 3))
        for region in regions:
            base = np.array(_STUFF_COLORS[SCENES.names[region.label]]) + random.uniform(-30, 30, 3)
            background[region.mask] = _mottle(random, base, style.size, cells=5, contrast=35)[region.mask]
    else:
        pale = _random_color(random, saturation=(0, 0.35))
        background = _mottle(random, pale, style.size, cells=int(random.integers(2, 7)), contrast=45)
    canvas = Image.fromarray(background.astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(random.integers(0, style.max_clutter + 1))):
        color = tuple(int(c) for c in random.integers(0, 256, 3))
        x, y, to_x, to_y = random.uniform(-0.3, 1.3, 4) * style.size
        if random.random() < 0.5:
            pen.line((x, y, to_x, to_y), fill=color, width=max(1, round(style.size / 96)))
        else:
            radius = random.uniform(0.01, 0.03) * style.size
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return np.asarray(canvas).astype(np.float64)


def _draw_surface(random: Generator, style: SyntheticStyle) -> np.ndarray:
    """Draw the surface of a shape: a saturated color, slightly shaded, or striped."""
    surface = _mottle(random, _random_color(random, saturation=(0.55, 1)), style.size, cells=2, contrast=25)
    if random.random() < 0.3:
        period = random.uniform(0.06, 0.12) * style.size
        stripes = (np.indices((style.size, style.size)).sum(0) / period).astype(int) % 2
        surface = surface + (stripes * random.uniform(-70, 70))[..., None]
    return surface


def _random_color(random: Generator, saturation: tuple[float, float]) -> np.ndarray:
    hue, value = random.random(), random.uniform(0.35, 1)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, random.uniform(*saturation), value))


def _mottle(random: Generator, color: np.ndarray, size: int, cells: int, contrast: float) -> np.ndarray:
    """Vary a color smoothly over the image, mostly in brightness."""
    brightness = random.uniform(-contrast, contrast, (cells, cells, 1))
    tint = random.uniform(-contrast / 3, contrast / 3, (cells, cells, 3))
    small = Image.fromarray(np.clip(color + brightness + tint, 0, 255).astype(np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float64)


def _draw_shape(random: Generator, style: SyntheticStyle, label: int) -> np.ndarray:
    """Return the mask of one shape, entirely inside the image."""
    radius = random.uniform(style.min_size, style.max_size) / 2 * style.size
    center = random.uniform(radius + 1, style.size - radius - 1, 2)
    return _fill_shape(random, style, label, center, radius)


def _fill_shape(random: Generator, style: SyntheticStyle, label: int, center: np.ndarray, radius: float) -> np.ndarray:
    """Return the mask of a shape inscribed in a circle."""
    corners, upright = {"circle": (48, 0.0), "square": (4, np.pi / 4), "triangle": (3, -np.pi / 2)}[SHAPES.names[label]]
    turn = upright + np.deg2rad(random.uniform(-style.tilt, style.tilt))
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    points = center + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    canvas = Image.new("1", (style.size, style.size))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=1)
    return np.asarray(canvas).view(np.uint8) != 0  # Pillow's array has 255 for true


def _covers_too_much(masks: list[np.ndarray], areas: list[int], new: np.ndarray, min_visible: float) -> bool:
    """True if a new shape would cover too much of another."""
    return any((hidden & ~new).sum() < min_visible * area for hidden, area in zip(masks, areas, strict=True))
