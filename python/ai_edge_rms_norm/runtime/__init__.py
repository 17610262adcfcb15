"""Running .tflite models."""
