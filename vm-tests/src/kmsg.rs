//! The kernel's own log: a warning or worse fails the run even when every test passed.

use anyhow::Context as _;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;

/// Parts of messages that tell of a fault of the kernel. The first line of each WARN() and BUG() is "cut here".
const FAULTS: &[&str] = &[
    "------------[ cut here ]------------",
    "WARNING: ",
    "BUG: ",
    "Oops: ",
    "general protection fault",
    "rcu: INFO: ",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "unregister_netdevice: waiting for",
    "Kernel panic",
];

/// One record is at most this long (PRINTK_MESSAGE_MAX in kernel/printk/internal.h).
const RECORD_MAX: usize = 8192;

/// A reader of /dev/kmsg, from the first message of this boot.
pub(crate) struct Kmsg(File);

impl Kmsg {
    pub(crate) fn open() -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        Ok(Self(file.context("open /dev/kmsg")?))
    }

    /// Prints the faults logged since the last call; true if there are none.
    pub(crate) fn report_faults(&mut self) -> anyhow::Result<bool> {
        let mut clean = true;
        let mut record = [0; RECORD_MAX];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => return Ok(clean),
                Ok(length) => {
                    if let Some(message) = fault(&String::from_utf8_lossy(&record[..length])) {
                        println!("vm-tests: kernel fault: {message}");
                        clean = false;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(clean),
                // The next record was overwritten; the read after this one continues at the oldest that is left.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error).context("read /dev/kmsg"),
            }
        }
    }
}

/// The message of a record (`priority,sequence,time,flags;message`) if it tells of a fault of the kernel.
fn fault(record: &str) -> Option<&str> {
    let (fields, text) = record.split_once(';')?;
    let priority: u32 = fields.split(',').next()?.parse().ok()?;
    let message = text.lines().next()?;
    // Above the three bits of the level is the facility; the kernel's own is 0, and no process can claim it.
    (priority >> 3 == 0 && FAULTS.iter().any(|part| message.contains(part))).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn a_warning_is_a_fault_and_ordinary_messages_are_not() {
        let cases = [
            ("4,512,900,-;------------[ cut here ]------------\n", true),
            ("4,513,901,-;WARNING: CPU: 0 PID: 7 at net/core/sock_map.c:1 sock_map_close+0x1/0x2\n", true),
            ("0,600,9,-;watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [x:7]\n", true),
            ("3,601,9,-;INFO: task x:7 blocked for more than 120 seconds.\n", true),
            ("12,7,0,-;BUG: written by a process\n", false),
            ("6,1,0,-;Linux version 6.1.0\n", false),
            ("6,2,0,-;text of user space\n WARNING: in a continuation\n", false),
        ];
        for (record, expected) in cases {
            assert_eq!(fault(record).is_some(), expected, "{record}");
        }
    }
}
