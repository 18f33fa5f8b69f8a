"""What may keep a model from running here."""
