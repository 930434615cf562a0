"""The one idea: sequences that share a beginning become one tree of tokens, read once.

This package imports data; everything that trains or answers with trees builds on it.
"""
