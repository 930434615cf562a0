"""Benchmarks of training and answering against other systems; figures are in RESULTS.md."""
