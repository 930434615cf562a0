"""Files -> rows -> token ids: what questions are, how they are read, checked, split and encoded.

Imports only the modules at the top of dandap (errors, recipe, terminal).
"""
