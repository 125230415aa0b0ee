//! Netlink requests, one at a time.

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// Dumps of a table that changes all the time.
const TRIES: usize = 10;

/// A connected netlink socket for requests.
pub(super) struct Netlink(Socket);

impl Netlink {
    /// Opens a socket for `protocol` (`NETLINK_ROUTE`, `NETLINK_SOCK_DIAG`).
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// All objects that answer a dump request.
    pub(super) fn dump<T: NetlinkSerializable + NetlinkDeserializable>(&self, request: T) -> io::Result<Vec<T>> {
        self.request(request, NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// The objects that answer a request for one.
    pub(super) fn get<T: NetlinkSerializable + NetlinkDeserializable>(&self, request: T) -> io::Result<Vec<T>> {
        self.request(request, NLM_F_REQUEST)
    }

    fn request<T: NetlinkSerializable + NetlinkDeserializable>(&self, request: T, flags: u16) -> io::Result<Vec<T>> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut packet = vec![0; message.buffer_len()];
        message.serialize(&mut packet);
        for _ in 0..TRIES {
            self.0.send(&packet, 0)?;
            if let Some(answers) = self.answers(flags & NLM_F_DUMP != 0)? {
                return Ok(answers);
            }
        }
        Err(io::Error::other("the table changed with every attempt to read it"))
    }

    /// `None`: the table changed while it was dumped, so that something may be missing or twice.
    fn answers<T: NetlinkDeserializable>(&self, many: bool) -> io::Result<Option<Vec<T>>> {
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<T>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                // Messages are aligned to four bytes (linux/netlink.h, `NLMSG_ALIGN`).
                let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
                rest = &rest[length..];
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => found.push(object),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(found)),
                    _ => {}
                }
            }
            if !many {
                return Ok(Some(found));
            }
        }
    }
}
