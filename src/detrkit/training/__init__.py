"""The training loop: optimiser, schedule, checkpoints, log."""
