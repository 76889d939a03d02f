"""Attacks that search for prompts which a model answers although it should refuse."""
