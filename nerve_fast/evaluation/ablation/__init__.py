"""Ablations: one setting varied at a time over the images of a data set."""
