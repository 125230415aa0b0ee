//! The archive that the kernel unpacks as its first file system ("newc" cpio: Documentation/driver-api/early-userspace/
//! buffer-format.rst in the kernel's tree).

/// Regular file, readable by all.
const FILE: u32 = 0o100_644;
/// Regular file that may be run.
const PROGRAM: u32 = 0o100_755;
/// Directory.
const DIRECTORY: u32 = 0o040_755;

/// An archive being written.
#[derive(Default)]
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    /// Equal inode numbers would make two entries hard links of each other.
    inode: u32,
}

impl Initramfs {
    pub(super) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, &[]);
    }

    pub(super) fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, FILE, content);
    }

    pub(super) fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, PROGRAM, content);
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let length = |bytes: usize| u32::try_from(bytes).expect("a file of an initramfs is far below 4 GiB");
        let (user, group, links, time, device) = (0, 0, 1, 0, 0);
        let header = [
            self.inode,
            mode,
            user,
            group,
            links,
            time,
            length(content.len()),
            device,
            device,
            device,
            device,
            length(name.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Header and content each start at a multiple of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Initramfs;

    #[test]
    fn entries_are_aligned_and_the_trailer_ends_the_archive() {
        let mut archive = Initramfs::default();
        archive.directory("modules");
        archive.file("modules/a", b"12345");
        archive.program("init", b"x");
        let bytes = archive.finish();

        let starts: Vec<_> = bytes.windows(6).enumerate().filter(|(_, w)| w == b"070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        // Header field 6 (size) of the second entry, at 6 + 6 * 8 characters.
        assert_eq!(&bytes[starts[1] + 54..starts[1] + 62], b"00000005");
        assert!(bytes[starts[3]..].windows(10).any(|name| name == b"TRAILER!!!"));
    }
}
