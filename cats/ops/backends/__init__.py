"""One module per backend. They compute on dense pieces of memory; `reference` computes on any tensors."""
