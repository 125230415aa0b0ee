//! What passes between the pods, as `tcpdump` would show it.

use super::{CLIENT, SERVER, pod::Pod};
use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt},
};
use std::os::fd::{AsRawFd, OwnedFd};

/// A tap on a pod's devices.
pub(crate) struct Wire(OwnedFd);

/// What has passed between the pods.
pub(crate) struct Seen {
    /// Packets with TCP data.
    pub(crate) packets: usize,
    /// Bytes of TCP data, in the order of their packets.
    pub(crate) bytes: Vec<u8>,
}

impl Seen {
    /// Whether these bytes are somewhere in what has passed.
    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        self.bytes.windows(bytes.len()).any(|window| window == bytes)
    }
}

impl Wire {
    /// Listens from now on.
    pub(crate) fn tap(pod: &Pod) -> Result<Self> {
        const ROOM: usize = 8 << 20;
        let tap = pod.netns.enter(|| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            Ok(socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?)
        });
        let tap = tap.context("cannot listen to a pod's devices (AF_PACKET)")?;
        setsockopt(&tap, sockopt::RcvBufForce, &ROOM).context("cannot make room for what a pod's devices carry")?;
        Ok(Self(tap))
    }

    /// What has passed between the pods since the last time; an error when some of it found no room.
    pub(crate) fn all(&self) -> Result<Seen> {
        let seen = self.seen()?;
        let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of_val(&counts) as libc::socklen_t;
        // SAFETY: the kernel writes no more than `length` bytes there, which is what there is (packet(7), PACKET_STATISTICS).
        let got = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counts).cast(),
                &mut length,
            )
        };
        Errno::result(got).context("cannot ask whether packets were dropped (PACKET_STATISTICS)")?;
        ensure!(counts.tp_drops == 0, "{} packets found no room: nothing is known of them", counts.tp_drops);
        Ok(seen)
    }

    /// What has passed between the pods since the last time.
    pub(crate) fn seen(&self) -> Result<Seen> {
        let mut seen = Seen { packets: 0, bytes: Vec::new() };
        let mut frame = vec![0; 1 << 16];
        loop {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => {
                    let data = between_the_pods(&frame[..length]).unwrap_or_default();
                    seen.packets += usize::from(!data.is_empty());
                    seen.bytes.extend_from_slice(data);
                }
                Err(Errno::EAGAIN) => return Ok(seen),
                Err(error) => return Err(error).context("cannot read what a pod's devices carry"),
            }
        }
    }
}

/// The TCP data of an Ethernet frame, if it goes from one pod to the other: legs over loopback are at home.
fn between_the_pods(frame: &[u8]) -> Option<&[u8]> {
    const ETHERNET: usize = 14;
    const TCP: u8 = 6;
    let packet = frame.get(ETHERNET..)?;
    let ends = [packet.get(12..16)?, packet.get(16..20)?];
    let pods = [CLIENT.octets(), SERVER.octets()];
    let between = ends[0] != ends[1] && ends.iter().all(|end| pods.iter().any(|pod| pod == end));
    if packet[0] >> 4 != 4 || packet[9] != TCP || !between {
        return None;
    }
    let header = usize::from(packet[0] & 15) * 4;
    let end = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let segment = packet.get(header..end)?;
    segment.get(usize::from(segment.get(12)? >> 4) * 4..)
}
