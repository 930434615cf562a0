"""Write and read what a run leaves behind: its folder, answers, submissions, reports and plots.

The package imports data, and loads torch only where a function asks what a machine has.
"""
