"""Starts the processes of workers, prints what they say, and stops them."""
