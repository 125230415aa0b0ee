//! The counters, a set for each CPU: one for every reason of every verdict, and for everything else worth knowing.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = ($hook:literal, $verdict:literal, $reason:literal),)*) => {
        /// Index into each CPU's part of the array `COUNTERS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// All of them, in the order of the array.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Labels `hook`, `verdict` and `reason` of the metric `sidecar_verdicts_total`.
            pub const fn labels(self) -> (&'static str, &'static str, &'static str) {
                match self { $(Self::$name => ($hook, $verdict, $reason),)* }
            }
        }
    };
}

counters! {
    /// An outbound connection goes to the proxy.
    ConnectCaptured = ("connect", "capture", "captured"),
    /// Not a TCP socket.
    ConnectBypassNotTcp = ("connect", "bypass", "not_tcp"),
    /// The sidecar's own connection.
    ConnectBypassProxy = ("connect", "bypass", "proxy"),
    /// A socket of another network namespace.
    ConnectBypassOtherNetns = ("connect", "bypass", "other_netns"),
    /// An MPTCP socket.
    ConnectBypassMptcp = ("connect", "bypass", "mptcp"),
    /// To loopback.
    ConnectBypassLoopback = ("connect", "bypass", "loopback"),
    /// To `0.0.0.0` or `::`, which is loopback.
    ConnectBypassUnspecified = ("connect", "bypass", "unspecified"),
    /// To one of the pod's own addresses.
    ConnectBypassOwnAddress = ("connect", "bypass", "own_address"),
    /// To a multicast or broadcast address: the kernel refuses it.
    ConnectBypassNotUnicast = ("connect", "bypass", "not_unicast"),
    /// To an IPv6 link-local address.
    ConnectBypassLinkLocal = ("connect", "bypass", "link_local"),
    /// The operator excluded the port.
    ConnectBypassExcludedPort = ("connect", "bypass", "excluded_port"),
    /// The operator excluded the network.
    ConnectBypassExcludedCidr = ("connect", "bypass", "excluded_cidr"),
    /// Outbound capture is switched off.
    ConnectBypassDisabled = ("connect", "bypass", "disabled"),
    /// The socket is bound to a loopback address: the kernel refuses it, unless `route_localnet` is set.
    ConnectBypassLoopbackSource = ("connect", "bypass", "loopback_source"),
    /// The socket is bound to an address that is not the pod's (`IP_FREEBIND`, `IP_TRANSPARENT`).
    ConnectBypassForeignSource = ("connect", "bypass", "foreign_source"),
    /// The socket is bound to a device that does not own the pod's address.
    ConnectBypassBoundDevice = ("connect", "bypass", "bound_device"),
    /// The sidecar knows no route, `on_failure: open`: the kernel decides.
    ConnectBypassNoRoute = ("connect", "bypass", "no_route"),
    /// No proxy listens, `on_failure: open`.
    ConnectBypassProxyGone = ("connect", "bypass", "proxy_gone"),
    /// The proxy hangs, `on_failure: open`.
    ConnectBypassProxyStale = ("connect", "bypass", "proxy_stale"),
    /// To one of the sidecar's own ports.
    ConnectDenyOwnPort = ("connect", "deny", "own_port"),
    /// The sidecar knows no route, `on_failure: closed` or strict mutual TLS: the errno that the kernel would give.
    ConnectDenyNoRoute = ("connect", "deny", "no_route"),
    /// A socket of another network namespace, where mutual TLS is strict.
    ConnectDenyOtherNetns = ("connect", "deny", "other_netns"),
    /// To an IPv6 link-local address, where mutual TLS is strict.
    ConnectDenyLinkLocal = ("connect", "deny", "link_local"),
    /// The socket is bound to a loopback address, where mutual TLS is strict: the errno that the kernel would give.
    ConnectDenyLoopbackSource = ("connect", "deny", "loopback_source"),
    /// The socket is bound to an address that is not the pod's, where mutual TLS is strict.
    ConnectDenyForeignSource = ("connect", "deny", "foreign_source"),
    /// The socket is bound to a device that does not own the pod's address, where mutual TLS is strict.
    ConnectDenyBoundDevice = ("connect", "deny", "bound_device"),
    /// No proxy listens, `on_failure: closed`.
    ConnectDenyProxyGone = ("connect", "deny", "proxy_gone"),
    /// The proxy hangs, `on_failure: closed`.
    ConnectDenyProxyStale = ("connect", "deny", "proxy_stale"),
    /// The kernel had no memory for the original destination.
    ConnectDenyNoMemory = ("connect", "deny", "no_memory"),
    /// An inbound connection goes to the proxy.
    LookupSteered = ("sk_lookup", "capture", "steered"),
    /// Not TCP.
    LookupPassNotTcp = ("sk_lookup", "bypass", "not_tcp"),
    /// The pod talks to itself.
    LookupPassOwnAddress = ("sk_lookup", "bypass", "own_address"),
    /// To or from an IPv6 link-local address.
    LookupPassLinkLocal = ("sk_lookup", "bypass", "link_local"),
    /// To the sidecar's metrics or health port.
    LookupPassOwnPort = ("sk_lookup", "bypass", "own_port"),
    /// The operator excluded the port.
    LookupPassExcludedPort = ("sk_lookup", "bypass", "excluded_port"),
    /// The application does not listen there.
    LookupPassNotListened = ("sk_lookup", "bypass", "not_listened"),
    /// Inbound capture is switched off.
    LookupPassDisabled = ("sk_lookup", "bypass", "disabled"),
    /// No proxy listens, `on_failure: open`.
    LookupPassProxyGone = ("sk_lookup", "bypass", "proxy_gone"),
    /// The proxy hangs, `on_failure: open`.
    LookupPassProxyStale = ("sk_lookup", "bypass", "proxy_stale"),
    /// The kernel refused the listener, `on_failure: open`.
    LookupPassAssignRefused = ("sk_lookup", "bypass", "assign_refused"),
    /// From outside to one of the sidecar's capture ports.
    LookupDropOwnPort = ("sk_lookup", "deny", "own_port"),
    /// To or from an IPv6 link-local address, where mutual TLS is strict.
    LookupDropLinkLocal = ("sk_lookup", "deny", "link_local"),
    /// No proxy listens, `on_failure: closed`.
    LookupDropProxyGone = ("sk_lookup", "deny", "proxy_gone"),
    /// The proxy hangs, `on_failure: closed`.
    LookupDropProxyStale = ("sk_lookup", "deny", "proxy_stale"),
    /// The kernel refused the listener, `on_failure: closed` or strict mutual TLS.
    LookupDropAssignRefused = ("sk_lookup", "deny", "assign_refused"),
    /// A connecting socket published its note.
    NotePublished = ("sockops", "note", "published"),
    /// The accepting end took the note.
    NoteClaimed = ("sockops", "note", "claimed"),
    /// The `FLOWS` map is full: the proxy resets the connection, for it cannot know its destination or show its client.
    NoteFlowsFull = ("sockops", "note", "flows_full"),
    /// The kernel had no memory for the accepting end's note.
    NoteNoMemory = ("sockops", "note", "no_memory"),
    /// The application began to listen.
    ListenerAdded = ("sockops", "listener", "added"),
    /// The application stopped listening.
    ListenerRemoved = ("sockops", "listener", "removed"),
    /// The listener maps are full: that port is not captured.
    ListenersFull = ("sockops", "listener", "full"),
    /// The proxy asked for an original destination and got it.
    OriginalDstAnswered = ("sockopt", "original_dst", "answered"),
    /// The proxy asked for an original destination of a connection that was not captured.
    OriginalDstUnknown = ("sockopt", "original_dst", "unknown"),
    /// The proxy named the client that the application is to see.
    PresentAsStored = ("sockopt", "present_as", "stored"),
    /// The proxy's request to name a client was malformed or the kernel had no memory.
    PresentAsRefused = ("sockopt", "present_as", "refused"),
    /// An application asked for its peer and got the one it knows.
    PeerRestored = ("name", "restored", "peer"),
    /// An application asked for its local address and got the one it would have without us.
    LocalRestored = ("name", "restored", "local"),
    /// A SYN of the proxy told what it speaks; each that is sent again counts.
    MeshOffered = ("sockops", "mesh", "offered"),
    /// The other end of the proxy's connection answered: it is meshed.
    MeshSeen = ("sockops", "mesh", "seen"),
    /// The SYN of an accepted connection told what its sidecar speaks.
    MeshAsked = ("sockops", "mesh", "asked"),
    /// A SYN-ACK answered such a SYN; each that is sent again counts.
    MeshAnswered = ("sockops", "mesh", "answered"),
    /// Other options left no room in the header.
    MeshNoRoom = ("sockops", "mesh", "no_room"),
    /// The kernel had no memory for what the ends of a connection said.
    MeshNoMemory = ("sockops", "mesh", "no_memory"),
    /// A message went from the application's socket into the proxy's queue.
    FastRedirected = ("sk_msg", "redirect", "fast"),
    /// By TCP: the fast path is switched off.
    FastOff = ("sk_msg", "tcp", "off"),
    /// By TCP: a layer such as kTLS sees to the bytes.
    FastLayered = ("sk_msg", "tcp", "layered"),
    /// By TCP: one of the ends has begun to close.
    FastClosing = ("sk_msg", "tcp", "closing"),
    /// By TCP: the application's socket is in blocking mode.
    FastBlocking = ("sk_msg", "tcp", "blocking"),
    /// By TCP: not known to be a plain write.
    FastNotPlain = ("sk_msg", "tcp", "not_plain"),
    /// By TCP: what went by TCP before has not been received yet.
    FastOrder = ("sk_msg", "tcp", "order"),
    /// By TCP: too much waits for the proxy.
    FastFull = ("sk_msg", "tcp", "full"),
    /// By TCP: the proxy's end has gone, or the application's is another connection's by now or was let go while a thread sent, or the kernel did not show what must be known.
    FastUnknown = ("sk_msg", "tcp", "unknown"),
    /// A connection came onto the fast path.
    EnrolDone = ("enrol", "enrolled", "worth"),
    /// A connection left it: its application went over to blocking mode, to sends without copy or to small messages, or connected the socket anew, or too few of its messages went past TCP, or the fast path was switched off.
    EnrolUndone = ("enrol", "released", "released"),
    /// Not enrolled, once for each look: the application's socket is in blocking mode.
    EnrolBlocking = ("enrol", "tcp", "blocking"),
    /// Not enrolled, once for each look: the application's writes are too small to gain.
    EnrolSmall = ("enrol", "tcp", "small"),
    /// Not enrolled: kTLS or MPTCP.
    EnrolLayered = ("enrol", "tcp", "layered"),
    /// Not enrolled: another program owns the socket.
    EnrolBusy = ("enrol", "tcp", "busy"),
    /// Not enrolled: the maps are full.
    EnrolFull = ("enrol", "tcp", "full"),
    /// Not enrolled: the kernel refused it.
    EnrolRefused = ("enrol", "tcp", "refused"),
    /// Not enrolled: this kernel's iterator holds a lock that the sockmap would take again.
    EnrolLock = ("enrol", "tcp", "lock"),
    /// Not enrolled, once for each look: the application's socket may send without copy.
    EnrolZeroCopy = ("enrol", "tcp", "zero_copy"),
    /// Not enrolled, once for each look: the proxy has not received all that the application sent, as always of a stream that is sent as fast as it goes.
    EnrolUnread = ("enrol", "tcp", "unread"),
}

/// Entries of `COUNTERS` for one CPU: all counters, and what fills the last cache line (64 bytes), so that CPUs share none.
pub const PER_CPU: u32 = (Counter::ALL.len() as u32).next_multiple_of(8);

/// Where a CPU counts this.
pub const fn slot(cpu: u32, counter: Counter) -> u32 {
    cpu * PER_CPU + counter as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_counter_has_its_own_index_and_labels() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
        let labels: HashSet<_> = Counter::ALL.iter().map(|c| c.labels()).collect();
        assert_eq!(labels.len(), Counter::ALL.len());
    }
}
