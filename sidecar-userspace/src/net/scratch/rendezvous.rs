//! Where both ends of a scratch connection come from.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{PATIENCE, Scratch};

/// The port at which scratch connections end.
pub struct Rendezvous(TcpListener);

impl Rendezvous {
    /// Listens on a port of loopback that the kernel chooses.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        // An `accept` that waits for ever would be a probe without end.
        SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
        Ok(Self(listener))
    }

    /// Its port.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn port(&self) -> io::Result<u16> {
        self.0.local_addr().map(|address| address.port())
    }

    /// A connection: the end that connected, and the one that accepted.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn connect(&self, blocking: bool) -> io::Result<(Scratch, Scratch)> {
        let to: SocketAddr = self.0.local_addr()?;
        let near = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        near.connect_timeout(&to.into(), PATIENCE)?;
        let own = near.local_addr()?.as_socket();
        loop {
            let (far, peer) = self.0.accept()?;
            // Any process of the pod could connect here meanwhile.
            if Some(peer) == own {
                let far = Socket::from(far);
                for end in [&near, &far] {
                    end.set_tcp_nodelay(true)?;
                }
                near.set_read_timeout(Some(PATIENCE))?;
                near.set_write_timeout(Some(PATIENCE))?;
                near.set_nonblocking(!blocking)?;
                far.set_nonblocking(true)?;
                return Ok((Scratch(near), Scratch(far)));
            }
        }
    }
}
