"""A run as one file: what `run.toml` contains, how its names become objects, and how the run is executed."""
