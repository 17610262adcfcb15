"""The command `ai-edge-rms-norm`."""
