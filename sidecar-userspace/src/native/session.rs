//! What a TLS connection keeps between two calls, and how records become data and data records.
//!
//! TLS has no urgent data. Records of the largest size ([`LARGEST_RECORD`]) never hold data here: they are messages
//! between the two sidecars, of which there is one, an urgent byte. Everything else is the application's bytes and nothing
//! but them.

use std::{collections::VecDeque, io};

use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};

use super::role::Role;
use crate::net::{Received, Side as _, Stream};

/// The largest record (RFC 8446 §5.1): a message between sidecars.
const LARGEST_RECORD: usize = 1 << 14;
/// The most data that one record holds.
const DATA_RECORD: usize = LARGEST_RECORD - 1;
/// What a record adds to its data: header, content type and tag, with room to spare.
const RECORD_OVERHEAD: usize = 64;
/// First byte of a message that holds an urgent byte.
const URGENT: u8 = 1;

/// A TLS connection without its socket.
pub(super) struct Session<R> {
    pub(super) tls: R,
    /// Ciphertext that is no whole record yet.
    pub(super) incoming: Vec<u8>,
    /// Ciphertext that the kernel has not taken yet.
    pub(super) outgoing: Outgoing,
    /// What was decrypted and did not fit where it was wanted.
    decrypted: VecDeque<Decrypted>,
    /// The other end has said that it sends no more.
    ended: bool,
    /// We have said so.
    pub(super) finished: bool,
    /// It is of no use any more, and nothing that comes is believed. Told once all that came before has been received.
    failed: Option<io::ErrorKind>,
}

/// How far records have been processed.
#[derive(Default)]
pub(super) struct Progress {
    /// Bytes of the records that are done with.
    pub(super) done: usize,
    /// Bytes of data that were written.
    pub(super) filled: usize,
}

enum Decrypted {
    Bytes { bytes: Box<[u8]>, taken: usize },
    Urgent(u8),
}

/// Ciphertext that waits for the kernel.
#[derive(Default)]
pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    sent: usize,
}

impl<R: Role> Session<R> {
    pub(super) fn new(tls: R) -> Self {
        Self {
            tls,
            incoming: Vec::new(),
            outgoing: Outgoing::default(),
            decrypted: VecDeque::new(),
            ended: false,
            finished: false,
            failed: None,
        }
    }

    /// Whether something can be received without the socket.
    pub(super) fn has_more(&self) -> bool {
        self.ended || self.failed.is_some() || !self.decrypted.is_empty()
    }

    /// Has `bytes` come before everything else that was decrypted.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.decrypted.push_front(Decrypted::Bytes { bytes: bytes.into(), taken: 0 });
        }
    }

    /// From now on it is of no use.
    pub(super) fn fail(&mut self, error: &io::Error) {
        self.failed.get_or_insert(error.kind());
    }

    /// # Errors
    /// It is of no use any more.
    pub(super) fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// Has TLS itself say what it has to say, and processes what is kept. rustls remembers where in the records that it was
    /// given it has stopped: it must never be given others.
    pub(super) fn settle(&mut self) -> Result<(), rustls::Error> {
        self.process_more(&[])
    }

    /// Processes what is kept and what has `arrived`.
    pub(super) fn process_more(&mut self, arrived: &[u8]) -> Result<(), rustls::Error> {
        let mut records = std::mem::take(&mut self.incoming);
        records.extend_from_slice(arrived);
        let mut progress = Progress::default();
        let processed = self.process(&mut records, &mut [], &mut progress);
        self.incoming = if progress.done == 0 { records } else { records.split_off(progress.done) };
        processed
    }

    /// The means to encrypt, after [`Session::settle`].
    pub(super) fn write_traffic(&mut self) -> io::Result<WriteTraffic<'_, R::Data>> {
        match self.tls.process(&mut self.incoming).state.map_err(broken)? {
            ConnectionState::WriteTraffic(traffic) => Ok(traffic),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Processes `records`: data goes to `buffer`, and where that is full or a message comes, to `decrypted`. `progress` is
    /// right also when it fails.
    pub(super) fn process(
        &mut self,
        records: &mut [u8],
        buffer: &mut [u8],
        progress: &mut Progress,
    ) -> Result<(), rustls::Error> {
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process(&mut records[progress.done..]);
            let more = match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        progress.filled += keep(record.payload, &mut buffer[progress.filled..], &mut self.decrypted);
                    }
                    true
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    let encoded = append(&mut self.outgoing.bytes, 1024, |room| match data.encode(room) {
                        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
                        encoded => Ok(encoded.map_err(io::Error::other)),
                    });
                    encoded.map_err(|error| rustls::Error::General(error.to_string()))?;
                    true
                }
                // From here on `outgoing` sees to it.
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    true
                }
                ConnectionState::PeerClosed => {
                    self.ended = true;
                    true
                }
                _ => false,
            };
            progress.done += discard;
            if !more {
                return Ok(());
            }
        }
    }

    /// After an error: sends the alert that tells the other end. rustls gives it before it looks at records again, which it
    /// must not after an error.
    pub(super) fn tell_why(&mut self, socket: &Stream) {
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = self.tls.process(&mut []).state {
            let encode = |room: &mut [u8]| Ok(data.encode(room).map_err(io::Error::other));
            // An alert that does not fit, or that nobody takes now, is not sent.
            let _ = append(&mut self.outgoing.bytes, 1024, encode);
        }
        let _ = self.outgoing.send_to(socket);
    }

    pub(super) fn next_decrypted(&mut self, buffer: &mut [u8]) -> Option<Received> {
        let Some(next) = self.decrypted.front_mut() else {
            return self.ended.then_some(Received::End);
        };
        let (received, all) = match next {
            Decrypted::Urgent(byte) => (Received::Urgent(*byte), true),
            Decrypted::Bytes { bytes, taken } => {
                let left = &bytes[*taken..];
                let fits = left.len().min(buffer.len());
                buffer[..fits].copy_from_slice(&left[..fits]);
                *taken += fits;
                (Received::Bytes(fits), *taken == bytes.len())
            }
        };
        if all {
            self.decrypted.pop_front();
        }
        Some(received)
    }
}

/// Keeps a record's payload; returns the bytes that went to `buffer`.
fn keep(payload: &[u8], buffer: &mut [u8], decrypted: &mut VecDeque<Decrypted>) -> usize {
    if payload.len() == LARGEST_RECORD {
        if payload[0] == URGENT {
            decrypted.push_back(Decrypted::Urgent(payload[1]));
        }
        return 0;
    }
    let fits = if decrypted.is_empty() { payload.len().min(buffer.len()) } else { 0 };
    buffer[..fits].copy_from_slice(&payload[..fits]);
    if fits < payload.len() {
        decrypted.push_back(Decrypted::Bytes { bytes: payload[fits..].into(), taken: 0 });
    }
    fits
}

/// Most bytes that so much data makes when it is encrypted at once.
pub(super) fn encrypted_size(data: usize) -> usize {
    data + (data / DATA_RECORD + 1) * RECORD_OVERHEAD
}

/// Appends `data` to `records`.
pub(super) fn encrypt<D>(traffic: &mut WriteTraffic<'_, D>, data: &[u8], records: &mut Vec<u8>) -> io::Result<()> {
    data.chunks(DATA_RECORD).try_for_each(|data| encrypt_record(traffic, data, records))
}

/// Appends an urgent byte.
pub(super) fn encrypt_urgent<D>(traffic: &mut WriteTraffic<'_, D>, byte: u8, records: &mut Vec<u8>) -> io::Result<()> {
    let mut message = [0; LARGEST_RECORD];
    message[..2].copy_from_slice(&[URGENT, byte]);
    encrypt_record(traffic, &message, records)
}

/// Appends `close_notify`.
pub(super) fn encrypt_end<D>(traffic: &mut WriteTraffic<'_, D>, records: &mut Vec<u8>) -> io::Result<()> {
    append(records, RECORD_OVERHEAD, |room| match traffic.queue_close_notify(room) {
        Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
        queued => Ok(queued.map_err(io::Error::other)),
    })
}

fn encrypt_record<D>(traffic: &mut WriteTraffic<'_, D>, data: &[u8], records: &mut Vec<u8>) -> io::Result<()> {
    append(records, data.len() + RECORD_OVERHEAD, |room| match traffic.encrypt(data, room) {
        Ok(written) => Ok(Ok(written)),
        Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
        Err(error) => Ok(Err(io::Error::other(error))),
    })
}

/// Appends what `write` writes. It is given as much room as `guess`, and once more as much as it says that it needs.
fn append(
    bytes: &mut Vec<u8>,
    guess: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<io::Result<usize>, usize>,
) -> io::Result<()> {
    let start = bytes.len();
    let mut room = guess;
    loop {
        bytes.resize(start + room, 0);
        match write(&mut bytes[start..]) {
            Ok(written) => {
                bytes.truncate(start + written.as_ref().map_or(0, |written| *written));
                return written.map(drop);
            }
            Err(needed) => room = needed,
        }
    }
}

impl Outgoing {
    pub(super) fn move_to(&mut self, records: &mut Vec<u8>) {
        records.extend_from_slice(&self.bytes[self.sent..]);
        *self = Self::default();
    }

    /// True when nothing is left.
    pub(super) fn send_to(&mut self, socket: &Stream) -> io::Result<bool> {
        while self.sent < self.bytes.len() {
            match socket.send(&self.bytes[self.sent..])? {
                0 => return Ok(false),
                sent => self.sent += sent,
            }
        }
        *self = Self::default();
        Ok(true)
    }
}

pub(super) fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
