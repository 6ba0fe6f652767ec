"""What other tools ask of layers and ops: ONNX nodes, FLOP counts, tracers."""
