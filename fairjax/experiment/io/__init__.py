"""Files, signals and processes of a run."""
