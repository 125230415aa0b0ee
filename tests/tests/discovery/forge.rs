//! A client that writes its own segments: its address is nobody's, so no kernel answers in its name.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use sidecar_tests::harness::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

/// A client with its own address and port.
pub(crate) struct Forger {
    socket: Socket,
    from: SocketAddrV4,
    to: SocketAddrV4,
}

impl Forger {
    /// One that sends from `netns`.
    pub(crate) fn new(netns: &NetNs, from: SocketAddrV4, to: SocketAddrV4) -> Result<Self> {
        /// `IPPROTO_RAW`: packets with the IP header.
        const RAW: i32 = 255;
        let socket = netns.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW))))??;
        Ok(Self { socket, from, to })
    }

    /// Sends a segment. `options` are padded to whole words.
    pub(crate) fn send(
        &self,
        flags: u8,
        sequence: u32,
        acknowledged: u32,
        options: &[u8],
        payload: &[u8],
    ) -> Result<()> {
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), 0);
        let words = 5 + u8::try_from(options.len() / 4)?;
        let mut tcp = vec![];
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(sequence.to_be_bytes());
        tcp.extend(acknowledged.to_be_bytes());
        // Data offset, flags, window, checksum, urgent pointer.
        tcp.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(options);
        tcp.extend(payload);
        let sum = checksum(self.from.ip(), self.to.ip(), &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let length = u16::try_from(20 + tcp.len())?.to_be_bytes();
        // Identification and checksum are filled in by the kernel (raw(7)).
        let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend(self.from.ip().octets());
        packet.extend(self.to.ip().octets());
        packet.extend(tcp);
        self.socket.send_to(&packet, &self.to.into())?;
        Ok(())
    }
}

/// Of the segment and the pseudo header (RFC 9293 §3.1).
fn checksum(from: &Ipv4Addr, to: &Ipv4Addr, tcp: &[u8]) -> u16 {
    let mut bytes = [from.octets(), to.octets()].concat();
    bytes.extend([0, 6]);
    bytes.extend((tcp.len() as u16).to_be_bytes());
    bytes.extend(tcp);
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
