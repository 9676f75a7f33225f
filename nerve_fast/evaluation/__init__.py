"""How right a segmentation is."""
