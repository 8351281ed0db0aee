"""Photos with what is right and wrong about the detections, each mistake in the colour of its kind."""

from collections.abc import Sequence

from PIL import Image

from detrkit.visualization.draw import draw_boxes

RIGHT = "right"
# what stands on the photo for each kind, so that nobody has to tell colours apart
WORDS = {
    RIGHT: "",
    "badly placed": "place",
    "wrong class": "class",
    "duplicate": "twice",
    "background": "nothing",
    "wrong class and badly placed": "class + place",
    "missed": "missed",
}
COLOURS: dict[str, tuple[int, int, int]] = {
    RIGHT: (60, 200, 110),
    "badly placed": (250, 170, 40),
    "wrong class": (210, 90, 250),
    "duplicate": (60, 170, 250),
    "background": (250, 80, 70),
    "wrong class and badly placed": (250, 120, 180),
    "missed": (255, 255, 80),
}


def draw_errors(
    photo: Image.Image,
    boxes: Sequence[Sequence[float]],
    kinds: Sequence[str],
    names: Sequence[str],
    scores: Sequence[float | None],
) -> Image.Image:
    """Draw detections and missed objects on a copy of a photo; what is right stays without a caption.

    Args:
        photo: RGB.
        boxes: xyxy in pixels.
        kinds: of each box, one of COLOURS.
        names: of the classes.
        scores: None for objects that were missed.
    """
    captions = [
        () if kind == RIGHT else (f"{WORDS[kind]}: {name}" + ("" if score is None else f" {score:.2f}"), WORDS[kind])
        for kind, name, score in zip(kinds, names, scores, strict=True)
    ]
    return draw_boxes(photo, boxes, [0] * len(boxes), captions, [COLOURS[kind] for kind in kinds])
