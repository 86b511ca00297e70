"""Everything that uses a config, a file or a clock: runs, their figures and sweeps."""
