"""Benchmarks of pointwise_ext against every peer at hand: `python -m bench --help`."""
