"""Export models to ONNX, `torch.export` and OpenVINO, each compared with PyTorch; `detrkit.export` is the function."""

from detrkit._internal.callable_module import make_callable

make_callable(__name__, "export:export")
