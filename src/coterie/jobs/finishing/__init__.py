"""How surgery ends: what is recovered, reported, exported."""
