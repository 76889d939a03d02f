"""Where the stages of a study run: in this process, on a Ray cluster, or as Slurm jobs."""
