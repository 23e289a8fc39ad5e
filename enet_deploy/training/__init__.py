"""Training: recipe, crops, losses, the loop."""
