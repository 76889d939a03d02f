"""The stages of a study, one file a kind, named after it (see `..stage`); each is imported by `import_all`."""
