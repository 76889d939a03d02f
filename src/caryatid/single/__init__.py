"""One model outside a study: its answers, directions, and what interventions do to it."""
