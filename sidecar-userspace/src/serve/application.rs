//! The connection to the pod's own application.

use std::{io, sync::Arc, time::Duration};

use super::{Shared, why_not_connected};
use crate::{
    addr::{ClientAddr, OrigDst},
    id::SpiffeId,
    net::{self, Side as _, Stream},
    proxy_protocol::{Header, TLV_SOURCE_IDENTITY},
    telemetry::CloseReason,
};

/// What is to be told to the application, and where it listens.
pub struct Application {
    /// Where it listens.
    pub to: OrigDst,
    /// Whom it sees as its peer.
    pub client: ClientAddr,
    /// Who the client has proved to be.
    pub peer: Option<SpiffeId>,
    /// It listens on a certain device.
    pub device_bound: bool,
    /// What all connections share.
    pub shared: Arc<Shared>,
}

impl Application {
    /// Connects to it.
    ///
    /// # Errors
    /// Why not.
    pub async fn dial(self) -> Result<Stream, CloseReason> {
        let stream = self.reach().await.map_err(|error| why_not_connected(&error))?;
        if self.shared.limits.proxy_protocol_ports.contains(&self.to.0.port()) {
            self.introduce(&stream)?;
        }
        Ok(stream)
    }

    async fn reach(&self) -> io::Result<Stream> {
        /// Far more than a handshake on this machine takes.
        const LONG: Duration = Duration::from_millis(250);
        let connect = |device_bound| net::connect_in(self.to, self.client, device_bound, self.shared.tuning());
        if self.device_bound {
            return connect(true).await;
        }
        // No answer at all comes from a full queue, or from a listener on a device of which it is not known yet: it has just
        // begun to listen, and cannot answer loopback addresses.
        match tokio::time::timeout(LONG, connect(false)).await {
            Ok(connected) => connected,
            Err(_) => connect(true).await,
        }
    }

    /// Tells the application with a PROXY protocol header who its client is.
    fn introduce(self, stream: &Stream) -> Result<(), CloseReason> {
        let identity = |peer: SpiffeId| (TLV_SOURCE_IDENTITY, peer.as_str().as_bytes().to_vec());
        let values = self.peer.map(identity).into_iter().collect();
        let header = Header { source: self.client.0, destination: self.to.0, values }.encode();
        // A socket that is just connected has room for it.
        let whole = stream.send(&header).is_ok_and(|sent| sent == header.len());
        if whole { Ok(()) } else { Err(CloseReason::UpstreamReset) }
    }
}
