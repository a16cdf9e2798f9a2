//! criod-stream: one process per open exec, attach or port-forward.

fn main() {}
