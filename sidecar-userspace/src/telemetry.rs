//! What is measured and told: the record of every connection, metrics, access log.

mod connection;

pub use connection::{CloseReason, Direction, Traffic};
