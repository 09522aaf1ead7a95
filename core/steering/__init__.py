"""Steering: directions added to, removed from or clamped in a model while it generates."""
