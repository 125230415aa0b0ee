//! Bytes that betray loss, repetition and reordering.

use std::io::{self, Read, Write};

use anyhow::{Result, ensure};

/// A prime, so that no power-of-two shift of the stream looks the same.
const PERIOD: usize = 1_048_573;

/// An endless stream of reproducible bytes.
#[derive(Debug)]
pub struct Pattern {
    block: Vec<u8>,
    at: usize,
}

impl Pattern {
    /// The stream of this seed, which is not 0.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut block = Vec::with_capacity(PERIOD + 7);
        while block.len() < PERIOD {
            // Xorshift64 (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        block.truncate(PERIOD);
        Self { block, at: 0 }
    }

    /// The next bytes: at least one, at most `limit`.
    fn next(&self, limit: usize) -> &[u8] {
        &self.block[self.at..PERIOD.min(self.at + limit)]
    }

    fn advance(&mut self, n: usize) {
        self.at = (self.at + n) % PERIOD;
    }

    /// Writes some of the next bytes, at most `limit`; says how many.
    pub fn send_some(&mut self, to: &mut impl Write, limit: usize) -> io::Result<usize> {
        let n = to.write(self.next(limit))?;
        self.advance(n);
        Ok(n)
    }

    /// Writes the next `total` bytes in pieces of at most `piece`.
    pub fn send(&mut self, to: &mut impl Write, mut total: usize, piece: usize) -> io::Result<()> {
        while total > 0 {
            total -= self.send_some(to, piece.min(total))?;
        }
        Ok(())
    }

    /// Whether `bytes` come next; if so they are passed over.
    pub fn accept(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = self.next(bytes.len());
            if !bytes.starts_with(expected) {
                return false;
            }
            let n = expected.len();
            bytes = &bytes[n..];
            self.advance(n);
        }
        true
    }

    /// Reads until `total` bytes have come or the stream ends; says how many. An error at the first wrong byte.
    pub fn receive(&mut self, from: &mut impl Read, total: usize) -> Result<usize> {
        let mut buffer = vec![0; 256 * 1024];
        let mut received = 0;
        while received < total {
            let room = buffer.len().min(total - received);
            let n = from.read(&mut buffer[..room])?;
            if n == 0 {
                break;
            }
            ensure!(self.accept(&buffer[..n]), "wrong bytes after {received}");
            received += n;
        }
        Ok(received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_accepted_and_a_shift_is_not() {
        let mut sent = Vec::new();
        Pattern::new(7).send(&mut sent, PERIOD + 1000, 4093).expect("write to memory");
        assert_eq!(sent.len(), PERIOD + 1000);
        assert!(Pattern::new(7).accept(&sent));
        assert!(!Pattern::new(7).accept(&sent[1..]));
        assert!(!Pattern::new(8).accept(&sent));
        assert_eq!(Pattern::new(7).receive(&mut sent.as_slice(), usize::MAX).expect("intact"), sent.len());
    }
}
