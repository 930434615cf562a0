"""Answers: from trees of prompts, by choices, or by transformers' generate; in one `Answerer`.

This package imports base, tree, runs and data; not training, which stands beside it.
"""
