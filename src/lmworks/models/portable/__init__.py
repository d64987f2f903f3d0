"""A decoder as a graph that other runtimes execute: ONNX Runtime, ExecuTorch."""
