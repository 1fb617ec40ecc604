"""How well cloaks protect."""
