"""Files of questions become rows here, which are checked, split and encoded as token ids.

The package imports only modules at the top of dandap (bars, errors, recipe).
"""
