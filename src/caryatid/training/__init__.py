"""Training arms from one backbone: loss terms, R2D2's pool of attacks, the loop that stops at anchors."""
