"""The tables of a study, one file each, named after it (see `..table`); all modules here are found by themselves."""
