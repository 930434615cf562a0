"""Dandap's machinery: reading data, encoding prompts, loading models, training and answering."""
