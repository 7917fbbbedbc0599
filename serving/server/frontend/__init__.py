"""How the server meets its users: flags, the gRPC port, health, metrics."""
