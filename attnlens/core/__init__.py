"""Floor 0: pure mathematics on tensors. Axes: B text, L layer, H head, Q query, K key, G group, D width, R row."""
