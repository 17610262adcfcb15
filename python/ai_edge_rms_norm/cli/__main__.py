"""Runs the command as `python -m ai_edge_rms_norm.cli`."""

from ai_edge_rms_norm.cli.main import main

main()
