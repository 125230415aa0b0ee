//! A transparent networking sidecar: eBPF hands the pod's TCP connections to this proxy.
//!
//! One connection: the kernel captures it ([`redirect`]), a listener accepts it ([`serve`]), its original destination
//! is asked for, the destination is dialled ([`net`]), bytes move ([`relay`]) and a record says how it ended
//! ([`telemetry`]). [`outbound`] and [`inbound`] tell that story for each direction.

pub mod addr;
pub mod admin;
pub mod app;
pub mod ca;
pub mod cli;
pub mod config;
pub mod control;
pub mod detect;
pub mod hbone;
pub mod id;
pub mod identity;
pub mod inbound;
pub mod lifecycle;
pub mod mtls;
pub mod native;
pub mod net;
pub mod outbound;
pub mod pod;
pub mod policy;
pub mod proxy_protocol;
pub mod redirect;
pub mod relay;
pub mod sandbox;
pub mod serve;
pub mod supervisor;
pub mod telemetry;
pub mod tls;
