"""What is made of a run's document: bars, comparison, pictures and pages."""
