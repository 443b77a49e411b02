"""What the cloud costs and how fast it is, measured through its public API: ``python -m bench``."""
