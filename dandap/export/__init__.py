"""A finished run made into what others load: merged weights, an adapter, a GGUF, a model card.

This package imports base, runs and data; not training and answering, which stand beside it.
"""
