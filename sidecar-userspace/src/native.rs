//! The native transport between sidecars: TLS 1.3 on the original port, a header, then the application's bytes.

mod header;
mod role;
mod secure;
mod session;
pub mod spare;
mod stream;

pub use role::{ClientEnd, Role, ServerEnd};
pub use secure::{Handshakes, Secured};
pub use stream::{TlsArrived, TlsStream};
