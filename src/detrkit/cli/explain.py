"""`detrkit explain`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def explain(
    photo: Path,
    /,
    *,
    weights: str,
    annotations: Path | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    threshold: float = 0.5,
    figure: Literal["encoder", "decoder", "matching"] | None = None,
    points: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    queries: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    layer: int | None = None,
    head: int | None = None,
    device: str = "auto",
) -> None:
    """Show what a model saw in a photo: attention, boxes layer by layer, matching and losses, shapes.

    Writes one HTML page that opens without a network. With annotations, it also says which objects were missed, and why.
    With --figure, writes a picture for print instead.

    Example: `detrkit explain photo.jpg --weights runs/first --annotations photos`

    Parameters
    ----------
    photo
        The photo.
    weights
        Run folder, weights file, Hugging Face folder or id, or preset.
    annotations
        COCO JSON, or dataset folder of any form, that describes the photo.
    output
        Page (.html), explained.html if not given; of a figure, .svg, .png or .pdf.
    threshold
        Least score of a detection, 0 to 1; the page has a slider.
    figure
        Picture: encoder attention from points, decoder attention of detections, or the matching.
    points
        Where the encoder looks from in the figure, as x,y in pixels; without them, from the detections.
    queries
        Queries whose attention must be shown, numbered from 0.
    layer
        Of the figure, from 1; the last if not given.
    head
        Of the figure, from 1; all of them averaged if not given.
    device
        `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one.
    """
    from detrkit.explain.run import ExplainRequest, explain_file

    explain_file(
        ExplainRequest(
            photo=photo,
            weights=weights,
            annotations=annotations,
            output=output,
            threshold=threshold,
            figure=figure,
            points=tuple(points or ()),
            queries=tuple(queries or ()),
            layer=layer,
            head=head,
            device=device,
        )
    )
