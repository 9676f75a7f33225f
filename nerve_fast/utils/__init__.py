"""Helpers that several rooms need: files, processes, labels, units, provenance."""
