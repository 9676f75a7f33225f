"""Measurements: time, memory and error of the operations, side by side, as ratios."""
