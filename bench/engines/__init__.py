"""What a step that moves α costs with each engine, beside plain training and TorchJD."""
