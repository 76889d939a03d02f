"""Attacks: what is searched for so that a model does as a harmful request asks."""
