//! A loader of eBPF objects that does not read the kernel's types.

use std::fs;

use aya::EbpfLoader;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A loader that relocates nothing against the kernel's types: nothing in the object asks for that.
///
/// `EbpfLoader::new` of aya 0.14 reads and parses all of them first (/sys/kernel/btf/vmlinux: over 5 MB, some 30 ms and 20 MB of
/// memory), and can be told not to only then. It does without where the file cannot be opened, hence no file can be meanwhile.
pub(super) fn plain() -> EbpfLoader<'static> {
    let sealed = Sealed::where_alone();
    let mut loader = EbpfLoader::new();
    drop(sealed);
    loader.btf(None);
    loader
}

/// This process can open no more files, until it is dropped (getrlimit(2), `RLIMIT_NOFILE`: `EMFILE`).
struct Sealed {
    soft: u64,
    hard: u64,
}

impl Sealed {
    /// Only where no other thread would notice; `None`: there are some, or that cannot be told.
    fn where_alone() -> Option<Self> {
        if fs::read_dir("/proc/self/task").ok()?.count() != 1 {
            return None;
        }
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).ok()?;
        Some(Self { soft, hard })
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard)
            .expect("a process may raise its soft limit to what it was, which the hard limit allows");
    }
}
