"""From a config to a checked run: the schema, its checks, and the stages that build."""
