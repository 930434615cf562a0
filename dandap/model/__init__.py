"""The base model and the machine: device, memory, processes, loading, the adapter.

This package imports data, runs and tree.
"""
