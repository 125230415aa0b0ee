//! What the supervisor knows and the worker shows or goes by: memory that the one writes and the other reads.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::words::Words;

/// One figure on the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Figure {
    /// Connections past the capture whose socket another cgroup made: open at the last look.
    OtherCgroupOpen,
    /// The same, each counted once.
    OtherCgroupSeen,
    /// Connections past the capture that are older than it: open at the last look.
    OlderOpen,
    /// The same, each counted once.
    OlderSeen,
    /// Workers that ended by themselves.
    RestartsExited,
    /// Workers that a signal ended that was not ours.
    RestartsKilled,
    /// Workers that hung and were killed for it.
    RestartsHung,
    /// Workers that somebody moved to another cgroup and that were killed for it.
    RestartsMoved,
    /// One more than the processes of the application at the last look; 0: they cannot be counted.
    Applications,
    /// 1: the kernel does not tell MPTCP clients.
    MptcpAsTcp,
    /// 1: the kernel discovers no other sidecars.
    NoDiscovery,
    /// How far the fast path is ([`super::fast_path::Phase`], as the figures below).
    FastPathPhase,
    /// 1: messages may be redirected.
    FastPathOn,
    /// 1: an operator has switched it.
    FastPathByHand,
    /// 1: the probe saw messages redirected.
    FastPathRedirects,
    /// A bit for each trap that the probe sprang.
    FastPathSprung,
    /// Connections that were on it at the last look.
    FastPathConnections,
    /// The number of the last question about it that was answered.
    FastPathAnswered,
    /// Binaries that took the place of the one before.
    UpgradesDone,
    /// Upgrades that changed nothing.
    UpgradesRefused,
    /// Upgrades after which the binary before went on.
    UpgradesRolledBack,
    /// Workers that were replaced and still carry what was open.
    LeavingWorkers,
    /// Connections that they carry.
    LeavingConnections,
    /// Nanoseconds that a part of the sidecar's start took ([`super::startup::Phase`], as the five below).
    StartConfiguration,
    /// Programs loaded.
    StartPrograms,
    /// Ports bound.
    StartListeners,
    /// Worker up.
    StartWorker,
    /// Programs attached.
    StartAttach,
    /// Programs checked.
    StartCheck,
    /// CPU time of the supervisor in microseconds, at its last look at itself (as the four below).
    SupervisorCpu,
    /// Its resident memory in bytes.
    SupervisorResident,
    /// What of it no file backs.
    SupervisorAnonymous,
    /// Its threads.
    SupervisorThreads,
    /// Its open descriptors.
    SupervisorDescriptors,
    /// Looks for connections worth the fast path that failed.
    FastPathFailures,
    /// A bit for each trap that the probe could not play.
    FastPathUntried,
    /// What the probe found of both directions: bits of [`super::fast_path`], 0 if it was not made.
    FastPathBoth,
    /// A bit for each trap that it sprang (as the one below).
    FastPathBothSprung,
    /// That it could not play.
    FastPathBothUntried,
}

/// Words for figures, more than there are.
const FIGURES: usize = 64;
/// Words for a bit of each port.
const PORTS: usize = (1 << 16) / 64;
/// Words for a text.
const TEXT: usize = 64;
/// All of them.
const ALL: usize = FIGURES + PORTS + TEXT;

/// The supervisor's end.
pub struct Board {
    words: Words,
    file: File,
}

impl Board {
    /// A board on which everything is zero.
    ///
    /// # Errors
    /// The kernel gives no memory.
    pub fn new() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"sidecar-board", flags)?);
        file.set_len((ALL * size_of::<u64>()) as u64)?;
        let words = Words::map(&file, ALL)?;
        // Whoever gets the descriptor reads: only the mapping that is there already may write (Linux 5.1).
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_FUTURE_WRITE;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self { words, file })
    }

    /// A board that begins with everything that is on another one, of which there is only a descriptor left: nobody can write
    /// that one any more.
    ///
    /// # Errors
    /// The kernel gives no memory, or there is no board behind the descriptor.
    pub fn copy_of(other: impl AsFd) -> io::Result<Self> {
        let (board, before) = (Self::new()?, Words::map_to_read(other, ALL)?);
        for word in 0..ALL {
            board.words.get(word).store(before.get(word).load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(board)
    }

    /// Writes a figure.
    pub fn set(&self, figure: Figure, value: u64) {
        self.words.get(figure as usize).store(value, Ordering::Relaxed);
    }

    /// Adds to a figure.
    pub fn add(&self, figure: Figure, more: u64) {
        self.words.get(figure as usize).fetch_add(more, Ordering::Relaxed);
    }

    /// Writes a text, as much as there is room for. Figures that are written afterwards may speak of it.
    pub fn say(&self, text: &str) {
        let mut bytes = text.bytes();
        for word in 0..TEXT {
            let word_of = std::array::from_fn(|_| bytes.next().unwrap_or(0));
            self.words.get(FIGURES + PORTS + word).store(u64::from_ne_bytes(word_of), Ordering::Relaxed);
        }
        fence(Ordering::Release);
    }

    /// Writes the ports on which the application listens on a certain device.
    pub fn set_device_bound(&self, ports: &HashSet<u16>) {
        for word in 0..PORTS {
            let bits = (0..64_u16)
                .filter(|bit| ports.contains(&(word as u16 * 64 + bit)))
                .fold(0, |bits, bit| bits | 1 << bit);
            self.words.get(FIGURES + word).store(bits, Ordering::Relaxed);
        }
    }
}

impl AsFd for Board {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Board {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The worker's end. Clones read the same board.
#[derive(Clone)]
pub struct BoardReader(Arc<Words>);

impl BoardReader {
    /// Reads the board behind this descriptor.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn map(board: impl AsFd) -> io::Result<Self> {
        Ok(Self(Arc::new(Words::map_to_read(board, ALL)?)))
    }

    /// Reads the board behind this descriptor from now on, and so do all clones.
    ///
    /// # Errors
    /// It cannot be mapped; then the one before is read.
    pub fn replace(&self, board: impl AsFd) -> io::Result<()> {
        self.0.replace(board)
    }

    /// A figure as it is now.
    pub fn get(&self, figure: Figure) -> u64 {
        self.0.get(figure as usize).load(Ordering::Relaxed)
    }

    /// The text, as it was before a figure that was read.
    pub fn said(&self) -> String {
        fence(Ordering::Acquire);
        let words = (0..TEXT).flat_map(|word| self.0.get(FIGURES + PORTS + word).load(Ordering::Relaxed).to_ne_bytes());
        let bytes: Vec<u8> = words.take_while(|byte| *byte != 0).collect();
        // It may have been cut within a character.
        bytes.utf8_chunks().next().map_or_else(String::new, |chunk| chunk.valid().to_owned())
    }

    /// Processes of the application at the last look; `None`: they cannot be counted.
    pub fn applications(&self) -> Option<u64> {
        self.get(Figure::Applications).checked_sub(1)
    }

    /// Whether a socket that listens on `port` may be bound to a device: what comes from a loopback address never reaches
    /// such a socket.
    pub fn is_device_bound(&self, port: u16) -> bool {
        let (word, bit) = (usize::from(port) / 64, port % 64);
        self.0.get(FIGURES + word).load(Ordering::Relaxed) & (1 << bit) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_at_one_end_is_read_at_the_other() {
        let board = Board::new().unwrap();
        let reader = BoardReader::map(&board).unwrap();
        board.set(Figure::OlderOpen, 7);
        board.add(Figure::RestartsHung, 1);
        board.add(Figure::RestartsHung, 1);
        assert_eq!(
            [Figure::OlderOpen, Figure::RestartsHung, Figure::RestartsKilled].map(|figure| reader.get(figure)),
            [7, 2, 0]
        );
        let ports = HashSet::from([0, 63, 64, 8080, u16::MAX]);
        board.set_device_bound(&ports);
        let found: HashSet<u16> = (0..=u16::MAX).filter(|port| reader.is_device_bound(*port)).collect();
        assert_eq!(found, ports);
        board.set_device_bound(&HashSet::new());
        assert!(!reader.is_device_bound(8080));
    }

    #[test]
    fn a_reader_goes_over_to_the_copy_of_a_board_that_nobody_writes_any_more() {
        let first = Board::new().unwrap();
        first.set(Figure::OlderOpen, 7);
        first.say("why");
        let reader = BoardReader::map(&first).unwrap();
        let clone = reader.clone();
        let second = Board::copy_of(&first).unwrap();
        second.add(Figure::OlderOpen, 1);
        assert_eq!(reader.get(Figure::OlderOpen), 7);
        reader.replace(&second).unwrap();
        drop(first);
        assert_eq!((clone.get(Figure::OlderOpen), clone.said()), (8, "why".to_owned()));
        second.set(Figure::OlderOpen, 9);
        assert_eq!(clone.get(Figure::OlderOpen), 9);
    }

    #[test]
    fn whoever_gets_the_descriptor_cannot_write() {
        let board = Board::new().unwrap();
        assert!(Words::map(&board, 1).is_err());
        assert!(nix::unistd::write(&board, b"12345678").is_err());
    }
}
