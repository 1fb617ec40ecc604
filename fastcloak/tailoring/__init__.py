"""A mask of its own for every photo of an album: not recognised, and not linked to each other."""
