"""The one idea: sequences that share a beginning become one tree of tokens, which a model reads once.

Imports data; everything that trains or answers with trees builds on it.
"""
