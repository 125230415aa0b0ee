//! The two ends of a TLS connection, of which rustls makes two types.

use rustls::{
    CommonState,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::UnbufferedStatus,
};

/// The end that opened the connection.
pub type ClientEnd = UnbufferedClientConnection;
/// The end that accepted the connection.
pub type ServerEnd = UnbufferedServerConnection;

/// One end of a TLS connection.
pub trait Role {
    /// What rustls keeps for this end.
    type Data;

    /// Processes received records (see [`UnbufferedStatus`]).
    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// What both ends have in common: who the peer is, what was agreed on.
    fn common(&self) -> &CommonState;
}

macro_rules! role {
    ($connection:ty, $data:ty) => {
        impl Role for $connection {
            type Data = $data;

            fn process<'c, 'i>(&'c mut self, records: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, $data> {
                self.process_tls_records(records)
            }

            fn common(&self) -> &CommonState {
                self
            }
        }
    };
}
role!(ClientEnd, ClientConnectionData);
role!(ServerEnd, ServerConnectionData);
