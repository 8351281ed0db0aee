"""Typed, validated configuration of models and training runs; free of torch."""
