"""The stages of a study, one file a kind, named after it (see `..stage`); all modules here are found by themselves."""
