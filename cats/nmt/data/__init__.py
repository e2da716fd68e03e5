"""From text on disk to batches of tokens.

Modules with similar names: `encode` turns pairs into tokens; `encoders` runs it in several processes. `prepare` writes
prepared folders; `prepared` reads them. `batch` pads rows of tokens to tensors; `dataset` holds the tokens of all tasks
and selects the rows of a batch.
"""
