"""Floor 2: fine-tuning through the Trainer."""
