"""Alias of `ai_edge_rms_norm.conversion.lowering`, for its import's side effect."""

import ai_edge_rms_norm.conversion.lowering  # noqa: F401  Registers the lowerings.
