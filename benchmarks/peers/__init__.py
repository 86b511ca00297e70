"""The same federated work in several frameworks, a module each; `run` times them."""
