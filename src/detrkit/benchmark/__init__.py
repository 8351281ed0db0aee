"""Benchmark models on this machine, and describe models and datasets.

`detrkit.benchmark(["detr-r50", "model.onnx"])` returns a `BenchmarkReport`.
"""

from detrkit._internal.callable_module import make_callable

make_callable(__name__, "benchmark:benchmark")
