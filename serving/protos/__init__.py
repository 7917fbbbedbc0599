"""The messages of TF Serving that the client speaks, under names of our own."""
