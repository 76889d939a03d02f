"""Directions, carriers, rank and angles of activations, as pure functions."""
