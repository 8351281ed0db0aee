"""Inference: the `Detector`, prediction of files, engines and output writers."""
