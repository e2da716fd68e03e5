"""The Transformer, its loss, and translating with it."""
