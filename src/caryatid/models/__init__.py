"""One loaded model: its chat format, its forward passes and answers, and interventions on its residual stream."""
