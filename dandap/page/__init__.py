"""The page of app.py. Only `layout` and `serve` need Gradio."""
