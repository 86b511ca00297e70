"""What knows a config, a file or a clock: runs of `train`, their figures and sweeps."""
