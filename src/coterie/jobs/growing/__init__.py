"""Dense models become experts: split, upcycled, added."""
