"""What several rooms need and none owns: files, processes, labels, units, provenance."""
