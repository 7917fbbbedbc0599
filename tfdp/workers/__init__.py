"""Who the other workers are, exchanges with them, and what happens when one is lost."""
