"""Looking at a checkpoint without reading a weight."""
