//! A transparent networking sidecar: eBPF hands the pod's TCP connections to this proxy.
//!
//! One connection: the kernel captures it ([`redirect`]), a listener accepts it ([`serve`]), its original destination
//! is asked for, the destination is dialled ([`net`]), bytes move ([`relay`]) and a record says how it ended
//! ([`telemetry`]). [`outbound`] and [`inbound`] tell that story for each direction.

pub mod addr;
pub mod config;
pub mod telemetry;
