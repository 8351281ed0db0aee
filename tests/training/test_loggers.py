"""Reading of metrics.jsonl."""

from pathlib import Path

from detrkit.training.loggers.jsonl import read_metrics
from detrkit.visualization.charts import draw_training_curves

GOOD = '{"kind": "train", "step": 10, "epoch": 1, "loss": 2.5, "loss_ce": null}'
WRONG = (
    "5", "[]", "null", '"x"', "{}", '{"kind": "train"}', "[" * 5000, '{"kind": "train", "step": 1,',
    '{"kind": 3, "step": 1, "epoch": 1}', '{"kind": "train", "step": "1", "epoch": 1}',
    *(f'{{"kind": "train", "step": 1, "epoch": 1, "loss": {value}}}' for value in ('"x"', "[1]", 10**400, "NaN")),
)  # fmt: skip


def test_lines_that_are_no_metrics_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join((GOOD, *WRONG)).encode() + b"\n\xff\xfe\n" + GOOD.encode())
    metrics = read_metrics(tmp_path)
    assert [entry["step"] for entry in metrics] == [10, 10]
    draw_training_curves(metrics)
