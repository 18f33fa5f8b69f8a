"""A model under a memory budget: planned, loaded, verified."""
