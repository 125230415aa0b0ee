//! Kernel modules, loaded by system call: the host may have no kmod, and its modules are another kernel's.

use anyhow::Context as _;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use std::fs::File;
use std::path::Path;

/// Loads `files`, which are in `directory` and in an order that satisfies their dependencies.
pub(crate) fn load(directory: &str, files: &[String]) -> anyhow::Result<()> {
    for name in files {
        let path = Path::new(directory).join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("load the kernel module {name}")),
        }
    }
    Ok(())
}
