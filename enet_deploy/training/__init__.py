"""Training: recipe, schedule, crops, losses, the loop, checkpoints, evaluation and logs."""
