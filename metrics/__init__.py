"""What masks are worth: alone, beside a target, as a set beside the real set, and through the eyes of a network."""
