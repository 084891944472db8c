"""Benchmarks of pgm_energy against its peers and the machine. Run: ``python -m benchmarks``."""
