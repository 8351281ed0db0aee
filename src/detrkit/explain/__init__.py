"""Explain a prediction: attention maps, boxes after every decoder layer, the matching to the ground truth, tensor shapes.

`detrkit.explain(source, image)` returns an `Explanation`, which writes an interactive HTML page or figures for print.
"""

from detrkit._internal.callable_module import make_callable

make_callable(__name__, "explain:explain")
