// Package conformance holds specs for a runtime that speaks CRI v1: what the calls promise, and
// what the kubelet relies on without saying so.
//
// The specs talk to the socket that the environment variable CRI_ENDPOINT names, through the
// kubelet's own client library, and use a client of their own only for requests that the library
// would never send. Images come from the registry CRI_REGISTRY (host:port), filled by the program
// test-images; the runtime must reach it by plain HTTP, and must be led to it for docker.io and
// registry.k8s.io.
//
//	CRI_ENDPOINT          path or unix:// address of the runtime's socket
//	CRI_REGISTRY          host:port of the registry with the test images
//	CRI_PRIVATE_REGISTRY  host:port of one that asks for testuser and testpass (optional)
//	CRI_CGROUP_PARENT     cgroup parent of the pods (optional)
//	CRI_RUNTIME_HANDLER   runtime handler of the pods (optional)
//	CRI_STREAM_TLS        folder with the keys of a streaming server with TLS (optional; cmd/certs)
//	CRI_CDI_DIR           folder that the runtime reads CDI files from (optional; cdi_test.go)
//	CRIOD_RESTART         script that kills and starts the daemon (optional; resilience_test.go)
//
// Exec, attach and port-forward are driven by client-go, as kubectl and the API server do; frames
// that client-go would never send are made by hand.
//
// The registry's registries.conf (as test-images writes it) also lets the runtime speak plain HTTP
// to any port of the loopback: some specs put odd servers of their own in front of the registry.
//
// tests/lib/conformance.sh runs all this, against a socket or against Debian's containerd.
//
// Each spec is a Go test, named after the call and what is promised. Known deviations of other
// runtimes stand in deviations_test.go; "-runtime containerd" leaves those out.
package conformance
