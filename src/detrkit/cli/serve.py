"""`detrkit serve`."""

from typing import Literal


def serve(
    source: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    threshold: float | Literal["auto"] = 0.5,
    batch_size: int = 8,
    batch_wait: float = 5.0,
    queue: int = 256,
    timeout: float = 30.0,
    workers: int = 2,
    upload_limit: float = 20.0,
    pixel_limit: float = 50.0,
    precision: Literal["auto", "float32", "bfloat16"] = "float32",
) -> None:
    """Answer photos over HTTP: a page to explore what the model sees in them, and JSON for programs.

    / is the page. POST /predict takes a photo, as the request's body or as a file in a form, and answers what `detrkit
    predict` finds. /health and /metrics (Prometheus) tell how the server is. Photos that come at the same time are
    predicted together, which does not change what is found in them.

    Example: `detrkit serve runs/first`, then `curl --data-binary @photo.jpg http://127.0.0.1:8000/predict`

    Parameters
    ----------
    source
        Run folder, weights file, exported file, Hugging Face folder or id, or preset.
    host
        Address to listen on; 0.0.0.0 is every address of this machine. Nobody is asked for a password.
    port
        0 takes any that is free.
    device
        `cpu`, `cuda`; several with commas between them, `cuda:0,cuda:1`, each with a copy of the model; `auto` takes a GPU
        if there is one.
    threshold
        Least score of an object where a request does not say (`?threshold=0.7`), 0 to 1, or `auto`.
    batch_size
        Photos at a time on each device, at most; those of like shapes are put together.
    batch_wait
        Milliseconds that a photo waits for others when its device is idle.
    queue
        Photos that may be on their way at a time; more are answered 503.
    timeout
        Seconds for a photo to come, and seconds for its answer; later ones are answered 408 and 504.
    workers
        Threads that open photos.
    upload_limit
        Megabytes of an upload, at most.
    pixel_limit
        Megapixels of a photo, at most.
    precision
        Of the model; with `auto` and `bfloat16`, what is found may depend a little on what else is predicted.
    """
    from detrkit.cli.exit_codes import exit_with
    from detrkit.serve.serve import serve_model
    from detrkit.serve.settings import ServeConfig

    settings = ServeConfig(
        threshold=threshold,
        batch_size=batch_size,
        batch_wait=batch_wait,
        queue=queue,
        timeout=timeout,
        workers=workers,
        upload_limit=upload_limit,
        pixel_limit=pixel_limit,
    )
    exit_with(serve_model(source, settings, host=host, port=port, device=device, precision=precision))
