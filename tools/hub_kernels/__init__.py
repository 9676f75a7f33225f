"""``python -m tools.hub_kernels FOLDER``: the tree that Hugging Face's kernel hub is built from.

Sources are found by walking imports from :data:`ROOTS`, and rewritten as the hub requires it: they
import one another relatively, and run on Python 3.9. What the hub wants beside them, its operators,
layers, tests and card, lies in ``template/``. Nothing of the tree is edited by hand.

Source of the rules: "Kernel requirements" in the documentation of the package ``kernels``, 0.17.
"""
