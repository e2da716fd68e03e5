"""From losses to gradients: one backward pass of the weighted loss, or one gradient per task."""
