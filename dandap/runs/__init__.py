"""What a run leaves in its folder: recipe, answers, submission, report and plots."""
