"""Configs in plain Python, to be read with ``read_base``."""
