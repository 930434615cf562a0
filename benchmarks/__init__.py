"""Hold what measures: training and answering side by side with other ways, and RESULTS.md.

They import everything below; nothing imports them but tests.
"""
