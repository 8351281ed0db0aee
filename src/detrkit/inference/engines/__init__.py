"""Inference engines: PyTorch, ONNX Runtime, OpenVINO, torch.export programs."""
