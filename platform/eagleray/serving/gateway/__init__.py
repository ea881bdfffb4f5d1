"""The ingress's HTTP server: its port, what it lets in as HTTP, TLS, traces, the access log."""
