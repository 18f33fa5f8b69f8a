"""How well an image classifier bears an attack: many attacks, taken apart, and checks that the number means something."""
