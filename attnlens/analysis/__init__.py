"""Floor 3: measuring, comparing, testing, storing."""
