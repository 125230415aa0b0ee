//! The kernel's table of TCP sockets, which has one place for all network namespaces: each reading walks all of it, whoever's they are.

use std::io;

use netlink_packet_core::{
    DecodeError, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, Parseable,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};

use super::netlink::Netlink;

/// The TCP sockets of this network namespace in these states.
pub(super) fn read(netlink: &Netlink, states: StateFlags) -> io::Result<Vec<InetResponse>> {
    let both = || {
        let answers = netlink.dump(BothFamilies::Request(states.clone()))?;
        Ok(answers.into_iter().filter_map(BothFamilies::answer).collect())
    };
    // A kernel that does not know the older request is asked for one family after the other (net/core/sock_diag.c,
    // `sock_diag_rcv_msg`).
    both().or_else(|error: io::Error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EINVAL) => by_family(netlink, &states),
        _ => Err(error),
    })
}

fn by_family(netlink: &Netlink, states: &StateFlags) -> io::Result<Vec<InetResponse>> {
    let mut sockets = Vec::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let (extensions, states) = (ExtensionFlags::empty(), states.clone());
        let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
        for answer in netlink.dump(SockDiagMessage::InetRequest(request))? {
            if let SockDiagMessage::InetResponse(socket) = answer {
                sockets.push(*socket);
            }
        }
    }
    Ok(sockets)
}

/// `TCPDIAG_GETSOCK` (linux/inet_diag.h), which asks for every family at once: one walk instead of two.
enum BothFamilies {
    Request(StateFlags),
    Answer(Box<InetResponse>),
}

impl BothFamilies {
    const TYPE: u16 = 18;
    /// `struct inet_diag_req`: four bytes, the id of a socket, which a dump leaves empty, and the states.
    const LENGTH: usize = 60;
    const STATES: usize = 52;

    fn answer(self) -> Option<InetResponse> {
        match self {
            Self::Request(_) => None,
            Self::Answer(socket) => Some(*socket),
        }
    }
}

impl NetlinkSerializable for BothFamilies {
    fn message_type(&self) -> u16 {
        Self::TYPE
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Request(_) => Self::LENGTH,
            Self::Answer(socket) => socket.buffer_len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Request(states) => {
                buffer[..Self::LENGTH].fill(0);
                buffer[Self::STATES..Self::STATES + 4].copy_from_slice(&states.bits().to_ne_bytes());
            }
            Self::Answer(socket) => socket.emit(buffer),
        }
    }
}

impl NetlinkDeserializable for BothFamilies {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        InetResponse::parse(payload).map(|socket| Self::Answer(Box::new(socket)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use netlink_sys::protocols::NETLINK_SOCK_DIAG;

    use super::*;

    #[test]
    fn one_reading_shows_what_one_for_each_family_does() {
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(|at| TcpListener::bind(at).unwrap());
        let netlink = Netlink::open(NETLINK_SOCK_DIAG).unwrap();
        let ours = |sockets: Vec<InetResponse>| {
            let ports = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
            let mut all: Vec<_> = sockets.into_iter().map(|socket| socket.header.socket_id).collect();
            all.retain(|id| ports.iter().any(|at| (at.ip(), at.port()) == (id.source_address, id.source_port)));
            all.sort_by_key(|id| id.source_address);
            all
        };
        let answers = netlink.dump(BothFamilies::Request(StateFlags::LISTEN)).unwrap();
        let both = ours(answers.into_iter().filter_map(BothFamilies::answer).collect());
        assert_eq!(both, ours(by_family(&netlink, &StateFlags::LISTEN).unwrap()));
        assert_eq!(both.len(), 2, "one of each family");
    }
}
