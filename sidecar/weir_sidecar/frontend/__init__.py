"""The clients' side: connections, headers, bodies, keys, and the errors that the sidecar says."""
