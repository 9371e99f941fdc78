"""ONNX files as networks of plain PyTorch functions, run one by one as a network in eager mode runs them."""
