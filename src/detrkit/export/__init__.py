"""A trained model -> a file that other engines compute: ONNX, `torch.export`, OpenVINO; each checked against PyTorch."""
