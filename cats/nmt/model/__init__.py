"""The Transformer, its loss, and translation with it."""
