"""Group cases that do not hold by their cause."""
