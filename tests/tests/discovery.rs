//! Two sidecars learn of each other in the TCP handshake. The proxy's part is played by a process beside the sidecar, whose
//! sockets are the proxy's to the kernel, and on the sidecar's own listener and connections by the test; both ask with the
//! proxy's functions.

#[path = "discovery/answer.rs"]
mod answer;
#[path = "discovery/dial.rs"]
mod dial;
#[path = "discovery/forge.rs"]
mod forge;
#[path = "discovery/forged.rs"]
mod forged;
#[path = "discovery/handshake.rs"]
mod handshake;
#[path = "discovery/network.rs"]
mod network;

use sidecar::net::Transports;
use sidecar_tests::harness::Segment;

const BOTH: Transports = Transports::NATIVE.union(Transports::HBONE);

/// What the SYN of one end and the SYN-ACK of the other carry on the wire.
fn on_wire(transports: u8) -> Vec<u8> {
    vec![254, 5, b'S', b'C', transports]
}

/// Every experimental option among the segments.
fn experiments(segments: &[Segment]) -> Vec<Vec<u8>> {
    segments.iter().flat_map(Segment::experiments).map(<[u8]>::to_vec).collect()
}
