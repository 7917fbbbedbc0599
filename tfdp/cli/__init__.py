"""What the commands share: flags, signals, and how a worker's process ends."""
