"""What a run leaves behind: its folder, files written whole, answers, submissions, reports and plots.

Imports data; loads torch only where a function asks what a machine has.
"""
