"""`detrkit serve`."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from detrkit.inference.options import Precision
from detrkit.serve.config import THREAD_PREFIX, ServeConfig
from detrkit.serve.hosts import LOOPBACK_ADDRESSES

if TYPE_CHECKING:
    from detrkit.serve.serve import ServerInfo


def serve(
    source: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_host: Annotated[list[str] | None, Parameter(negative="")] = None,
    forwarded_allow_ips: str = LOOPBACK_ADDRESSES,
    root_path: str = "",
    device: str = "auto",
    precision: Precision = "float32",
    model: str | None = None,
    state_dict_key: str | None = None,
    config: Annotated[ServeConfig | None, Parameter(name="*")] = None,
) -> None:
    """Serve a model over HTTP: a page to explore its predictions, and a JSON API.

    / is the page. POST /predict takes an image, as the request's body or as a file in a form, and answers the detections
    as `detrkit predict` writes them. /health and /metrics (Prometheus) report the state of the server. Images that arrive
    at the same time share a batch, which does not change their detections.

    Example: `detrkit serve runs/first`, then `curl --data-binary @photo.jpg http://127.0.0.1:8000/predict`

    Parameters
    ----------
    source
        Run folder, weights file, exported file, Hugging Face folder or id, or preset.
    host
        Address to listen on; 0.0.0.0 is every address of this machine. There is no password.
    port
        0 chooses a free one.
    allowed_host
        Name that requests may be sent to, such as that of a proxy in front: `detect.example.com`, `*.example.com`, `*`;
        repeat it for several. Default: this machine's own addresses; with `--host 0.0.0.0`, any name.
    forwarded_allow_ips
        Addresses and networks of proxies whose X-Forwarded-* headers are believed, separated by commas; `*` is everyone.
    root_path
        Path prefix under which a proxy publishes the server, such as `/detect`; the proxy may remove it or not.
    device
        `cpu`, `cuda`; several separated by commas, `cuda:0,cuda:1`, each with a copy of the model; `auto` is a GPU if there
        is one.
    precision
        Of the model; with `auto` and `bfloat16`, detections may depend slightly on the other images of a batch.
    model
        Preset, or config.yaml of a run, of weights that do not describe their model, such as a saved state_dict().
    state_dict_key
        Entry of a .pth file that holds the weights, such as ema_model; default: the moving average if there is one.
    """
    from detrkit._internal.text import printable
    from detrkit.checkpoints.path_kinds import MODEL, check_kinds
    from detrkit.checkpoints.sources import check_source
    from detrkit.cli.console import get_console
    from detrkit.cli.exit_codes import exit_at_once
    from detrkit.distributed.devices import check_device_name
    from detrkit.serve.serve import check_port, serve_model

    check_kinds({"source": (source, MODEL)})
    check_source(source)
    check_port(port)
    for name in device.split(","):
        check_device_name(name.strip())
    console = get_console()
    loading = get_console(stderr=True).status(f"loading {printable(source)}")

    def print_address(server: "ServerInfo") -> None:
        loading.stop()
        console.print(f"{server.model} on {', '.join(server.devices)}, {server.url}; Ctrl-C ends it", soft_wrap=True)

    with loading:
        stopped_by = serve_model(
            source,
            host=host,
            port=port,
            allowed_hosts=allowed_host or (),
            forwarded_allow_ips=forwarded_allow_ips,
            root_path=root_path,
            device=device,
            precision=precision,
            model=model,
            state_dict_key=state_dict_key,
            config=config or ServeConfig(),
            on_ready=print_address,
        )
    if stopped_by is not None:
        console.print("stopped")
        exit_at_once(stopped_by, THREAD_PREFIX)
