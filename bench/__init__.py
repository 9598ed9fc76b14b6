"""Benchmarks: run `pytest bench`, or on a GPU `python -m bench.gpu --out DIR`."""
