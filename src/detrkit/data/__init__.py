"""Datasets: formats, splits, transforms, batches, checks."""
