"""The base model and the machine: device, memory, processes, loading, the adapter.

Imports data, runs and tree.
"""
