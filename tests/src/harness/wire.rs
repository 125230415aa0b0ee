//! What is on the wire: the TCP segments that pass the devices of a network namespace, as `tcpdump` would show them.

use std::{
    fmt, io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::{NetNs, PATIENCE, eventually};

/// Flags of a segment (RFC 9293 §3.1).
pub const SYN: u8 = 2;
/// As above.
pub const ACK: u8 = 16;
/// An option of this kind is an experiment (RFC 4727).
const EXPERIMENT: u8 = 254;

/// A TCP segment.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// Its flags, such as [`SYN`].
    pub flags: u8,
    /// Its sequence number.
    pub sequence: u32,
    /// Its options as they are, padding among them.
    pub options: Vec<u8>,
    /// Bytes of the stream.
    pub payload: Vec<u8>,
    /// It passed the loopback device.
    pub loopback: bool,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, flags, options, payload, loopback, .. } = self;
        let device = if *loopback { ", loopback" } else { "" };
        write!(f, "{from} > {to}, flags {flags:#04x}, options {options:02x?}, {} bytes{device}", payload.len())
    }
}

impl Segment {
    /// Whether it is a SYN; a SYN-ACK is none.
    pub fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// Whether it is a SYN-ACK.
    pub fn is_syn_ack(&self) -> bool {
        self.flags & (SYN | ACK) == SYN | ACK
    }

    /// Its experimental options, whole.
    pub fn experiments(&self) -> Vec<&[u8]> {
        let mut found = vec![];
        let mut rest = self.options.as_slice();
        while let [kind, tail @ ..] = rest {
            match (kind, tail.first()) {
                (0, _) => break,
                (1, _) => rest = tail,
                (_, Some(&length)) if length >= 2 && usize::from(length) <= rest.len() => {
                    let (option, after) = rest.split_at(usize::from(length));
                    if *kind == EXPERIMENT {
                        found.push(option);
                    }
                    rest = after;
                }
                _ => break,
            }
        }
        found
    }
}

/// Everything that passes, from its making on.
#[derive(Debug)]
pub struct Wire {
    socket: Socket,
    seen: Vec<Segment>,
}

impl Wire {
    /// Listens to every device of `netns`: also to what netfilter changes later, or drops.
    pub fn tap(netns: &NetNs) -> Result<Self> {
        /// `ETH_P_ALL` (linux/if_ether.h), in network byte order.
        const EVERYTHING: u16 = 3_u16.to_be();
        let open = || Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(EVERYTHING))));
        let socket = netns.run(open)?.context("AF_PACKET")?;
        socket.set_nonblocking(true)?;
        socket.set_recv_buffer_size(4 << 20)?;
        Ok(Self { socket, seen: vec![] })
    }

    /// The segments so far.
    pub fn segments(&mut self) -> Result<&[Segment]> {
        while let Some(segment) = self.receive()? {
            self.seen.extend(segment);
        }
        Ok(&self.seen)
    }

    /// Waits for a segment.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Segment) -> bool) -> Result<Segment> {
        self.wait_longer_for(PATIENCE, what, wanted)
    }

    /// Waits for a segment that needs more time.
    pub fn wait_longer_for(
        &mut self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Segment) -> bool,
    ) -> Result<Segment> {
        let mut found = None;
        eventually(limit, || {
            found = self.segments().ok().and_then(|seen| seen.iter().find(|segment| wanted(segment)).cloned());
            found.is_some()
        });
        found.with_context(|| format!("no {what} among {:#?}", self.seen))
    }

    /// Forgets what has passed.
    pub fn forget(&mut self) -> Result<()> {
        self.segments()?;
        self.seen.clear();
        Ok(())
    }

    /// `None`: nothing is there. `Some(None)`: something else than TCP, or the second sight of what loops back.
    fn receive(&self) -> Result<Option<Option<Segment>>> {
        let mut packet = [0_u8; 65_536];
        let mut from = MaybeUninit::<libc::sockaddr_ll>::zeroed();
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointers describe `packet`, `from` and its size, which outlive the call.
        let n = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                packet.as_mut_ptr().cast(),
                packet.len(),
                0,
                from.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let Ok(n) = usize::try_from(n) else {
            let error = io::Error::last_os_error();
            ensure!(error.kind() == io::ErrorKind::WouldBlock, "AF_PACKET: {error}");
            return Ok(None);
        };
        // SAFETY: zeroed before and written by the kernel.
        let from = unsafe { from.assume_init() };
        let loopback = from.sll_hatype == libc::ARPHRD_LOOPBACK;
        if loopback && from.sll_pkttype == libc::PACKET_OUTGOING {
            return Ok(Some(None));
        }
        Ok(Some(segment(&packet[..n], loopback)))
    }
}

fn segment(packet: &[u8], loopback: bool) -> Option<Segment> {
    const TCP: u8 = 6;
    let (from, to, tcp) = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&TCP) => {
            let (start, end) =
                (usize::from(packet[0] & 15) * 4, usize::from(u16::from_be_bytes([packet[2], packet[3]])));
            let address = |at| Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?)));
            (address(12)?, address(16)?, packet.get(start..end.max(start).min(packet.len()))?)
        }
        6 if packet.get(6) == Some(&TCP) => {
            let address = |at| Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)));
            (address(8)?, address(24)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(from, port(0)?),
        to: SocketAddr::new(to, port(2)?),
        flags: *tcp.get(13)?,
        sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        options: tcp.get(20..header)?.to_vec(),
        payload: tcp.get(header..)?.to_vec(),
        loopback,
    })
}
