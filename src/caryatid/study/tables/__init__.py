"""The tables of a study, one file each, named after it (see `..table`); each is imported by `import_all`."""
