"""All commands of `ai-edge-rms-norm`."""

from ai_edge_rms_norm.cli import (  # noqa: F401  Each registers itself.
    benchmark,
    check,
    compare,
    convert,
    doctor,
    graph,
    inspect,
    rewrite,
    run,
)
from ai_edge_rms_norm.cli.app import app, main

__all__ = ["app", "main"]

# rewrite registers fuse and translate.
app.registered_commands.sort(key=lambda command: command.name or "")
