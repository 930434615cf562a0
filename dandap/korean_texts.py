TEXTS = {}
ERRORS = {}
