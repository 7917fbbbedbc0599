"""The methods of TF Serving's gRPC services: each reads a request and makes a response."""
