"""The schema of params.yaml."""
