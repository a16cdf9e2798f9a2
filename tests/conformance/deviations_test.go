package conformance

// deviations names, for each peer, the specs that it is known not to keep, and why. The specs
// describe what this project promises; a peer was measured against them to test the specs.
var deviations = map[string]map[string]string{
	// containerd 1.6.20 of Debian 12.
	"containerd": {},
}
