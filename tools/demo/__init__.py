"""Generators of the bundled demo: a tiny base model and the sample data of every task."""
