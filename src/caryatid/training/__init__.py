"""Training of the arms: losses, the pool of adversarial cases, the loop."""
