"""From PyTorch to .tflite."""
