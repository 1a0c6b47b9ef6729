"""One step of each cell."""
