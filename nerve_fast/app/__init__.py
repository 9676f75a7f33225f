"""``nerve-fast app``: a page in the browser. Only ``page`` and ``server`` know Gradio."""
