"""Studies whose figures the documentation quotes; in the checkout alone, not in the wheel."""
