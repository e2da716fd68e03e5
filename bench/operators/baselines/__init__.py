"""What the backends are compared with: eager torch, compiled torch, and TorchJD."""
