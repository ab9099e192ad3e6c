"""Training: pure steps, one loop."""
