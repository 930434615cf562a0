"""A finished run as others load it: merged weights, an adapter, a GGUF, with a model card."""
