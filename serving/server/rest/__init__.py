"""The embedded server's REST API and its page of metrics, on one HTTP port."""
