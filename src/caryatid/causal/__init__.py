"""What interventions on the residual stream do: candidate scores, read-outs beside controls, coupling, transfer."""
