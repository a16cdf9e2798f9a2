// Package kubernetes runs pods with a real kubelet on a criod, and looks at them as a user of
// Kubernetes would. tests/setup/kubernetes starts what it needs, says by the environment where that
// is, and runs it twice:
//
//	TestAlone…    the kubelet on its own: pods are files in a folder, read back through its server
//	TestJoined…   the same kubelet joined to an API server, with kubectl
//
// A test that is not parallel runs before the others of its round, and has the node for itself: the
// storms, which kill criod and restart the kubelet under pods that must not notice.
package kubernetes
