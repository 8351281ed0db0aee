"""The demo: train a small DETR on synthetic shapes."""
