"""The cases of ``benchmark.py``, and how they are measured."""
