"""What measurements share: rows, networks, the machine."""
