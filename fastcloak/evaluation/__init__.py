"""Judging: what face networks make of cloaked photos."""
