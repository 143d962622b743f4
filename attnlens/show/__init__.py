"""Floor 4: figures, report, viewer."""
