//! Integration tests of the sidecar on real namespaces, cgroups, sockets and applications.
//!
//! [`harness`] makes worlds of two pods and everything in them, and removes it again. [`cases`] is the table of socket
//! behaviours: what an application does at both ends of a connection, written once and run with and without sidecars.
//! [`agent`] is what those applications use to act and to report what they saw.

pub mod agent;
pub mod cases;
pub mod harness;
