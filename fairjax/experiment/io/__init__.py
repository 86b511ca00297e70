"""Files, signals, processes and the progress display of a run."""
