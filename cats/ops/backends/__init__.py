"""One module per backend: the operators on dense pieces of memory, and in `reference` on any tensors."""
