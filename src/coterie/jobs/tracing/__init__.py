"""A model over a text: its routes kept, its use of experts counted, its statistics collected."""
