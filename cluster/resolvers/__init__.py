"""What the engine that started this process says: which of how many workers it is."""
