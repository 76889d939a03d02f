"""What a model answers: suites of prompts, verdicts on answers, degeneracy, utility, perplexity."""
