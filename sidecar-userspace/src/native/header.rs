//! The header that opens each application's connection inside of TLS: a PROXY protocol v2 header.

use std::{io, net::SocketAddr, time::Duration};

use tokio::task::coop;

use super::{role::Role, stream::TlsStream};
use crate::{
    net::{Arrived as _, Received, Side as _},
    proxy_protocol::Header,
};

impl<R: Role> TlsStream<R> {
    /// Says whose connection this is from now on: the application's at `source`, which meant to reach `destination`. The
    /// peer knows from our certificate who we are. It leaves with the first data, or by [`Side::flush`](crate::net::Side).
    ///
    /// # Errors
    /// The connection is gone.
    pub fn open(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<()> {
        let header = Header { source, destination, values: Vec::new() }.encode();
        self.keep_encrypted(&header)
    }

    /// Waits for the header: as long as `idle` until it begins, and then `limit` for the rest.
    ///
    /// # Errors
    /// The peer closed the connection unused (`UnexpectedEof`), waited too long (`TimedOut`), or sent something else.
    pub async fn opened(&self, idle: Duration, limit: Duration) -> io::Result<Header> {
        let mut bytes = Vec::new();
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let begins = async {
            // A session ticket is sent while nobody waits. With a header that is there already it leaves with the answer.
            if !self.has_more() {
                self.flush_all().await?;
            }
            self.more_of_header(&mut bytes).await
        };
        tokio::time::timeout(idle, begins).await.map_err(late)??;
        tokio::time::timeout(limit, async {
            loop {
                if let Some((header, length)) = Header::parse(&bytes).map_err(io::Error::other)? {
                    self.unreceive(&bytes[length..]);
                    return Ok(header);
                }
                self.more_of_header(&mut bytes).await?;
            }
        })
        .await
        .map_err(late)?
    }

    async fn more_of_header(&self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let mut buffer = [0; 512];
        loop {
            match self.receivable().await?.receive(&mut buffer, false)? {
                Received::Bytes(count) => {
                    bytes.extend_from_slice(&buffer[..count]);
                    return Ok(());
                }
                // Messages between sidecars are none of the header; a flood of them must not keep the thread.
                Received::Nothing => coop::consume_budget().await,
                Received::End => return Err(io::ErrorKind::UnexpectedEof.into()),
                Received::Urgent(_) => return Err(io::Error::other("an urgent byte before the header")),
            }
        }
    }
}
