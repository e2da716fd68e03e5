"""The Transformer, its loss, and translation with it.

Module `loss` has the loss of every token; `cats.nmt.training.losses` makes the losses of the tasks from it. Module
`search` works on token ids; `decode` translates text with it.
"""
