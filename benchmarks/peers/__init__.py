"""The same training in other systems, one module each, run in an environment of their own."""
