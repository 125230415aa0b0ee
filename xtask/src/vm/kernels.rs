//! vm-tests/kernels.toml, and the kernels it names on this machine's disk.

use super::apt::Archive;
use crate::process;
use crate::scratch::Scratch;
use anyhow::{Context as _, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kernels {
    /// Modules of every kernel, loaded before the suite.
    pub(super) modules: Vec<String>,
    /// Test binaries whose outcome no kernel decides, and why.
    #[serde(default)]
    pub(super) indifferent: BTreeMap<String, String>,
    /// Layouts of tests that run in several, where no kernel decides the outcome, and why.
    #[serde(default)]
    pub(super) indifferent_layouts: BTreeMap<String, String>,
    /// Tests that are not run, and why.
    #[serde(default)]
    pub(super) leave_out: BTreeMap<String, String>,
    #[serde(rename = "kernel")]
    pub(super) kernels: Vec<Kernel>,
}

/// One kernel to test on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kernel {
    /// What `cargo xtask vm` calls it.
    pub(super) name: String,
    /// The suites of Debian to look in; the newest version in any of them is taken.
    pub(super) suites: Vec<String>,
    /// The metapackage that depends on the newest kernel.
    pub(super) package: String,
    /// Modules that only this kernel needs, loaded before the others.
    #[serde(default)]
    pub(super) modules: Vec<String>,
    /// Sections of the eBPF programs that this kernel must load.
    pub(super) programs: Vec<String>,
    /// Cases that may be skipped, and why.
    #[serde(default)]
    pub(super) skip: BTreeMap<String, String>,
}

/// A kernel on disk.
pub(super) struct Unpacked {
    pub(super) image: PathBuf,
    /// `lib/modules/<release>`.
    pub(super) modules: PathBuf,
}

impl Kernels {
    /// Reads the file, and keeps the kernels in `names`; all if there are none.
    pub(super) fn read(names: &[String]) -> anyhow::Result<Self> {
        let path = process::root().join("vm-tests/kernels.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut all: Self = toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        if let Some(unknown) = names.iter().find(|name| all.kernels.iter().all(|kernel| kernel.name != **name)) {
            let known: Vec<_> = all.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
            bail!("no kernel {unknown} in {}: there are {}", path.display(), known.join(", "));
        }
        if !names.is_empty() {
            all.kernels.retain(|kernel| names.contains(&kernel.name));
        }
        Ok(all)
    }
}

impl Kernel {
    /// The newest version of this kernel, downloaded unless it is here already. Older ones are removed.
    pub(super) fn fetch(&self) -> anyhow::Result<Unpacked> {
        let home = process::root().join(".tools/kernels").join(&self.name);
        let archive = Archive::open(&home.join("apt"), &self.suites)?;
        archive.update()?;
        let packages = archive.kernel_packages(&self.package)?;
        // The image's file name has the package's version, which the kernel's release alone would not tell.
        let (_, file) = packages.iter().find(|(name, _)| name.starts_with("linux-image-")).with_context(|| {
            format!("{} depends on no image: {:?}", self.package, packages.keys().collect::<Vec<_>>())
        })?;
        let place = home.join(file.trim_end_matches(".deb"));
        if !place.exists() {
            println!("{}: downloading {file}", self.name);
            let scratch = Scratch::beside(&home, "unpack")?;
            archive.unpack(packages.keys(), &scratch.path().join("root"))?;
            remove_older(&home)?;
            fs::rename(scratch.path().join("root"), &place)
                .with_context(|| format!("rename the unpacked kernel to {}", place.display()))?;
        }
        locate(&place)
    }
}

/// Removes the kernels in `home`: everything but hidden directories and apt's state.
fn remove_older(home: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(home).with_context(|| format!("list {}", home.display()))? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b"linux-image-") {
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Image and modules below `root`. Where they are changed with trixie (/usr/lib) and again with 6.17 (the image too).
fn locate(root: &Path) -> anyhow::Result<Unpacked> {
    let trees = ["lib/modules", "usr/lib/modules"].map(|tree| root.join(tree));
    let tree = trees.iter().find(|tree| tree.is_dir());
    let tree = tree.with_context(|| format!("no modules below {}", root.display()))?;
    let release = fs::read_dir(tree).with_context(|| format!("list {}", tree.display()))?.next();
    let release = release.with_context(|| format!("{} is empty", tree.display()))??;
    let beside_modules = release.path().join("vmlinuz");
    let in_boot = root.join("boot").join(format!("vmlinuz-{}", release.file_name().display()));
    let image = [beside_modules, in_boot].into_iter().find(|image| image.is_file());
    let image = image.with_context(|| format!("no kernel image below {}", root.display()))?;
    Ok(Unpacked { image, modules: release.path() })
}

#[cfg(test)]
mod tests {
    use super::Kernels;

    #[test]
    fn every_kernel_names_its_programs_and_every_skip_a_reason() {
        let all = Kernels::read(&[]).expect("the file in the tree parses");
        for kernel in &all.kernels {
            assert!(!kernel.programs.is_empty(), "{}", kernel.name);
            assert!(kernel.skip.values().all(|reason| !reason.is_empty()), "{}", kernel.name);
        }
        let indifferent = all.indifferent.values().chain(all.indifferent_layouts.values());
        assert!(all.leave_out.values().chain(indifferent).all(|reason| !reason.is_empty()));
    }

    #[test]
    fn an_unknown_kernel_is_refused_by_name() {
        let error = Kernels::read(&["2.4".to_owned()]).expect_err("no such kernel");
        assert!(error.to_string().contains("2.4"), "{error}");
    }
}
