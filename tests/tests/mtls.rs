//! Mutual TLS between two sidecars, seen from the applications, from the wire and from what the sidecars tell.

#[path = "mtls/authorization.rs"]
mod authorization;
#[path = "mtls/foreign.rs"]
mod foreign;
#[path = "mtls/hello.rs"]
mod hello;
#[path = "mtls/introduced.rs"]
mod introduced;
#[path = "mtls/own_tls.rs"]
mod own_tls;
#[path = "mtls/refusals.rs"]
mod refusals;
#[path = "mtls/rotation.rs"]
mod rotation;
#[path = "mtls/scan.rs"]
mod scan;
#[path = "mtls/slow.rs"]
mod slow;
#[path = "mtls/spare.rs"]
mod spare;
#[path = "mtls/stage.rs"]
mod stage;
#[path = "mtls/wire.rs"]
mod wire;

/// Mutual TLS or nothing.
const STRICT: &str = "mtls: { mode: strict }\n";
