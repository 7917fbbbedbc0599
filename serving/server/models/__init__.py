"""The models of a server: their versions on disk and in memory. Independent of gRPC methods."""
