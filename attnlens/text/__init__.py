"""Floor 1: corpora, and the alignment of characters, words and tokens."""
