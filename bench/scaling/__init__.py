"""What a step costs with many processes: a cost model, its constants measured here, and its predictions for GPUs."""
