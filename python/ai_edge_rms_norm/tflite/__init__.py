"""The .tflite file: reading, encodings, fusing and writing. Imports no PyTorch."""
