"""Greedy coordinate gradient search (arXiv 2307.15043)."""
