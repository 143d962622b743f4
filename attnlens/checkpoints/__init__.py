"""Floor 1: models on disk and in memory, and the hook that records their attention."""
