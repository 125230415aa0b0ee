//! The capture: loads the eBPF programs, tells them the rules, attaches them, and sees that they stay effective. The only
//! module that imports aya.
//!
//! The order is carried by types: [`Programs`] are loaded, [`Prepared`] programs know the rules and the proxy's
//! listeners, a [`Capture`] is attached. What a [`Capture`] holds are links: the kernel detaches everything when the
//! process dies in whatever way, unless `on_failure: closed` asks for links that outlive it.
//!
//! All of it is the supervisor's: it waits for nothing, but tells which descriptor and which time to wait for.

mod addresses;
mod attach;
mod bpf;
mod bpf_log;
mod capabilities;
mod capture;
mod changes;
mod discovery;
mod effective;
mod error;
pub mod fast_path;
mod init;
mod listeners;
mod loader;
mod maps;
mod netlink;
mod pins;
mod programs;
mod query;
mod resume;
mod rules;
mod socket_table;
mod store;
mod uncaptured;
mod v6_only;

pub use addresses::AddressWatch;
pub use bpf_log::BpfLog;
pub use capabilities::missing_capabilities;
pub use capture::{Attached, Capture, Prepared};
pub use error::Error;
pub use init::{Pinned, Step, init};
pub use listeners::ListenerWatch;
pub use maps::SharedMaps;
pub use programs::{Programs, Subflows};
pub use store::Store;
pub use uncaptured::{Uncaptured, UncapturedWatch};

/// Whether links can be pinned, as `on_failure: closed` needs.
///
/// # Errors
/// bpffs is not mounted where it should be.
pub fn can_pin() -> Result<(), Error> {
    pins::Pins::require_bpffs()
}
