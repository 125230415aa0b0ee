//! Netlink requests, one at a time.

use std::{cell::Cell, io};

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// Dumps of a table that changes all the time.
const TRIES: usize = 10;

/// A connected netlink socket for requests.
pub(super) struct Netlink {
    socket: Socket,
    /// Of the last request. Answers bear it: what is left of those to an earlier one is not taken for them.
    sequence: Cell<u32>,
}

impl Netlink {
    /// Opens a socket for `protocol` (`NETLINK_ROUTE`, `NETLINK_SOCK_DIAG`).
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: Cell::new(0) })
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
        let many = flags & NLM_F_DUMP != 0;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut packet = vec![0; message.buffer_len()];
        for _ in 0..TRIES {
            let sequence = self.sequence.get().wrapping_add(1);
            self.sequence.set(sequence);
            message.header.sequence_number = sequence;
            message.serialize(&mut packet);
            self.socket.send(&packet, 0)?;
            let mut answers = Answers::to(sequence, many);
            while !answers.complete {
                let (datagram, _) = self.socket.recv_from_full()?;
                answers.take(&datagram)?;
            }
            match answers.failure {
                // The kernel is not through with a dump that nobody has read to its end (net/netlink/af_netlink.c,
                // `__netlink_dump_start`): what was read on the way here brought it nearer to that.
                Some(error) if many && error.raw_os_error() == Some(libc::EBUSY) => {}
                Some(error) => return Err(error),
                None if answers.interrupted => {}
                None => return Ok(answers.found),
            }
        }
        Err(io::Error::other("the table changed with every attempt to read it"))
    }
}

/// The answers to one request. All are read, whatever is in them: what is left would be read by the next request.
struct Answers<T> {
    sequence: u32,
    many: bool,
    found: Vec<T>,
    failure: Option<io::Error>,
    /// The table changed while it was dumped, so that something may be missing or twice.
    interrupted: bool,
    /// There are no more.
    complete: bool,
}

impl<T: NetlinkDeserializable> Answers<T> {
    fn to(sequence: u32, many: bool) -> Self {
        Self { sequence, many, found: Vec::new(), failure: None, interrupted: false, complete: false }
    }

    fn take(&mut self, datagram: &[u8]) -> io::Result<()> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest).map_err(malformed)?;
            // Messages are aligned to four bytes (linux/netlink.h, `NLMSG_ALIGN`).
            let length = (header.length() as usize).next_multiple_of(4).min(rest.len());
            let (message, others) = rest.split_at(length);
            rest = others;
            if header.sequence_number() == self.sequence {
                self.interrupted |= header.flags() & NLM_F_DUMP_INTR != 0;
                self.complete |= !self.many;
                self.add(message);
            }
        }
        Ok(())
    }

    fn add(&mut self, message: &[u8]) {
        match NetlinkMessage::<T>::deserialize(message).map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(object)) => self.found.push(object),
            Ok(NetlinkPayload::Error(error)) if error.code.is_some() => {
                self.failure = Some(error.to_io());
                self.complete = true;
            }
            Ok(NetlinkPayload::Done(done)) => {
                // A dump that fails after it has begun says so at its end, as that of TCP sockets without the module tcp_diag.
                if done.code < 0 {
                    self.failure = Some(io::Error::from_raw_os_error(-done.code));
                }
                self.complete = true;
            }
            Ok(_) => {}
            Err(error) => self.failure = Some(malformed(error)),
        }
    }
}

fn malformed(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DoneMessage, ErrorMessage};
    use netlink_packet_route::{RouteNetlinkMessage, address::AddressMessage};
    use netlink_sys::protocols::NETLINK_ROUTE;

    use super::*;

    type Payload = NetlinkPayload<RouteNetlinkMessage>;

    fn message(sequence: u32, payload: Payload) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.finalize();
        message.header.sequence_number = sequence;
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn address(index: u32) -> Payload {
        let mut address = AddressMessage::default();
        address.header.index = index;
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address))
    }

    fn done() -> Payload {
        NetlinkPayload::Done(DoneMessage::default())
    }

    fn error(code: i32) -> Payload {
        let mut error = ErrorMessage::default();
        error.code = std::num::NonZeroI32::new(-code);
        NetlinkPayload::Error(error)
    }

    #[test]
    fn what_is_left_of_an_earlier_answer_is_not_taken_for_one() {
        let mut answers = Answers::<RouteNetlinkMessage>::to(2, true);
        let left = [message(1, address(7)), message(1, done()), message(1, error(libc::EPERM)), message(2, address(8))];
        answers.take(&left.concat()).unwrap();
        assert!(!answers.complete && answers.failure.is_none());
        answers.take(&message(2, done())).unwrap();
        assert!(answers.complete);
        let [RouteNetlinkMessage::NewAddress(found)] = &answers.found[..] else { panic!("{:?}", answers.found) };
        assert_eq!(found.header.index, 8);
    }

    #[test]
    fn a_dump_is_read_to_its_end_whatever_is_in_it() {
        let mut answers = Answers::<RouteNetlinkMessage>::to(1, true);
        let mut odd = message(1, address(7));
        // No address of any family is so short.
        odd.truncate(20);
        odd[0] = 20;
        answers.take(&[odd, message(1, address(8))].concat()).unwrap();
        assert!(answers.failure.is_some() && !answers.complete);
        answers.take(&message(1, done())).unwrap();
        assert!(answers.complete);
        let mut answers = Answers::<RouteNetlinkMessage>::to(1, true);
        let mut failed = DoneMessage::default();
        failed.code = -libc::ENOENT;
        answers.take(&message(1, NetlinkPayload::Done(failed))).unwrap();
        assert_eq!(answers.failure.and_then(|error| error.raw_os_error()), Some(libc::ENOENT));
    }

    #[test]
    fn a_dump_goes_on_after_one_that_nobody_has_read() {
        let netlink = Netlink::open(NETLINK_ROUTE).unwrap();
        let dump = || netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let all = dump().unwrap();
        assert!(!all.is_empty(), "no address, not even of loopback");
        let mut unread =
            message(99, NetlinkPayload::InnerMessage(RouteNetlinkMessage::GetAddress(AddressMessage::default())));
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        unread[6..8].copy_from_slice(&flags.to_ne_bytes());
        netlink.socket.send(&unread, 0).unwrap();
        assert_eq!(dump().unwrap().len(), all.len());
    }
}
