//! SPDY/3.1, WebSocket and the remote command and port-forward protocols of Kubernetes, without I/O.
