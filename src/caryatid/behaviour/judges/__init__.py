"""Judges: from a prompt and an answer to a verdict (refusal) or a score (harm)."""
