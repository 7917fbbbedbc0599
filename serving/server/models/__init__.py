"""The models of a server: their versions on disk and in memory. Knows nothing of calls."""
