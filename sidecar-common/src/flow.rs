//! What is remembered about a socket, and how it gets from one end of a loopback leg to the other.
//!
//! A *note* lives in socket storage, so it dies with its socket. When a socket that carries a note to pass on connects,
//! its note is put into the `FLOWS` map under the connection's key before the SYN leaves; the socket at the other end
//! takes it out as soon as it is established, before anyone can accept it. `FLOWS` therefore holds only connections
//! between the two moments.

use core::mem::size_of;

use crate::addr::{Endpoint, Ip};

/// What a [`Note`] means for the socket that carries it.
pub mod note_kind {
    /// The application's own connecting socket, captured. `peer` is where it meant to go.
    pub const CAPTURED: u32 = 1;
    /// The proxy's accepted socket at the other end of a captured one. `peer` is the original destination.
    pub const ORIGINAL_DST: u32 = 2;
    /// The proxy's connecting socket towards the application. `peer` is the client the application is to see.
    pub const PRESENT_AS: u32 = 3;
    /// The application's accepted socket. `peer` is the real client.
    pub const PRESENTED: u32 = 4;
    /// A connecting socket whose note could not be passed on (`FLOWS` was full): the other end knows nothing.
    pub const LOST: u32 = 5;
}

/// The application's end of a captured connection as it would be without us.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Local {
    /// Its address; `::` where the kernel's own answer is right.
    pub ip: Ip,
    /// One: the application chose the address with `bind`; zero: the kernel did.
    pub chosen: u32,
}

/// Value of the `NOTES` socket storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Note {
    /// One of [`note_kind`].
    pub kind: u32,
    /// The other end that this socket's owner is to see, or asks for.
    pub peer: Endpoint,
    /// `CAPTURED` and `ORIGINAL_DST`: the application's own end.
    pub local: Local,
}

/// Key of the `FLOWS` map. The address carries the family: IPv4 is IPv4-mapped.
///
/// The network namespace is part of it because `127.0.0.1` exists in every pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Network namespace cookie (`bpf_get_netns_cookie`).
    pub netns: u64,
    /// The end that connects.
    pub local: Endpoint,
    /// The end that listens.
    pub remote: Endpoint,
}

impl FlowKey {
    /// The same connection as its other end sees it.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self { netns: self.netns, local: self.remote, remote: self.local }
    }
}

/// Value of the `FLOWS` map: the note for the accepting end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// `ORIGINAL_DST` or `PRESENTED`.
    pub kind: u32,
    /// The note's peer.
    pub peer: Endpoint,
    /// The note's own end.
    pub local: Local,
}

/// What the accepting end of a connection learns from a socket that carries `note`; `None`: nothing.
#[inline(always)]
pub const fn passed_on(note: &Note) -> Option<Passed> {
    match note.kind {
        note_kind::CAPTURED => Some(Passed { kind: note_kind::ORIGINAL_DST, peer: note.peer, local: note.local }),
        note_kind::PRESENT_AS => Some(Passed { kind: note_kind::PRESENTED, peer: note.peer, local: note.local }),
        _ => None,
    }
}

/// Whether the owner of a socket that carries a note of `kind` sees the note's peer in `getpeername` and `accept`.
#[inline(always)]
pub const fn shows_peer(kind: u32) -> bool {
    kind == note_kind::CAPTURED || kind == note_kind::PRESENTED
}

const _: () = assert!(size_of::<Note>() == 44);
const _: () = assert!(size_of::<FlowKey>() == 48);
const _: () = assert!(size_of::<Passed>() == 44);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PortBe;

    fn endpoint(last: u8, port: u16) -> Endpoint {
        Endpoint::new(Ip::from_v4(u32::from_ne_bytes([10, 0, 0, last])), PortBe::from_host(port))
    }

    #[test]
    fn a_key_reversed_twice_is_itself_and_once_is_not() {
        let key = FlowKey { netns: 7, local: endpoint(1, 40_000), remote: endpoint(1, 15_001) };
        assert_ne!(key.reversed(), key);
        assert_eq!(key.reversed().reversed(), key);
    }

    #[test]
    fn only_connecting_sockets_pass_a_note_on() {
        for (kind, passed) in [
            (note_kind::CAPTURED, Some(note_kind::ORIGINAL_DST)),
            (note_kind::PRESENT_AS, Some(note_kind::PRESENTED)),
            (note_kind::ORIGINAL_DST, None),
            (note_kind::PRESENTED, None),
            (note_kind::LOST, None),
            (0, None),
        ] {
            let note = Note { kind, peer: endpoint(2, 80), ..Note::default() };
            assert_eq!(passed_on(&note).map(|p| p.kind), passed);
        }
    }

    #[test]
    fn the_application_sees_its_peer_and_the_proxy_sees_its_own_sockets() {
        assert!(shows_peer(note_kind::CAPTURED) && shows_peer(note_kind::PRESENTED));
        assert!(!shows_peer(note_kind::ORIGINAL_DST) && !shows_peer(note_kind::PRESENT_AS));
    }
}
