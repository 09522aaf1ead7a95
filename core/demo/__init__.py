"""The embedded default: a small world of word problems, a small model trained on it, and their run."""
