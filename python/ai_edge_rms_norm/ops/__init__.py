"""PyTorch: the operators, the module, and the replacement of modules that exist."""
