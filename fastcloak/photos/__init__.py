"""Photos: files, pixels, faces."""
