"""How it is measured: cases, machine, clock, memory, floors, and the document of a run."""
