"""``nerve-fast app``: a page. Only ``layout``, ``page`` and ``server`` know Gradio."""
