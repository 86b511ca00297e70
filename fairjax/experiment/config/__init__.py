"""From a config to a checked run: names, what goes with what, and what is built."""
