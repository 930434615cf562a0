"""Make the page of app.py: its cards of answers, its layout, and what may be fetched.

Only `layout` needs Gradio; what is asked of the models comes in as functions.
"""
