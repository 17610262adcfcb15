"""All commands of `ai-edge-rms-norm`."""

from ai_edge_rms_norm.cli import benchmark, inspect, rewrite  # noqa: F401  Registers.
from ai_edge_rms_norm.cli.app import app, main

__all__ = ["app", "main"]
