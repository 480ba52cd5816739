"""Benchmarks of gradstack against its peers: ``python -m bench``."""
