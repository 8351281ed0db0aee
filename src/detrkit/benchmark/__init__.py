"""Benchmarks of models on this machine, and descriptions of models and datasets."""
