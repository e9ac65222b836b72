"""A run as one file: what `run.toml` says, how its names become objects, and how it is carried out in a folder."""
