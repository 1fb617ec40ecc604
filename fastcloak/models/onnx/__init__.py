"""ONNX files -> torch.fx graphs."""
