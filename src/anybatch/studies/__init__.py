"""Studies: many runs under a budget."""
