"""Training, and the run directory that it writes.

Modules with similar names: `losses` computes the losses of a batch; `loss_log` sums them for the next line of metrics.
`batches` prepares the batch of every update. `training_state` decides what is in a checkpoint; `checkpoint` writes the
file, and `run` knows all files of a run directory.
"""
