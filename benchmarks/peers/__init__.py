"""The same training by others: one file for each, run in an environment of their own."""
