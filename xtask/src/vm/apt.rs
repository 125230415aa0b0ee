//! A private apt: another suite's packages, without adding that suite to this machine.
//!
//! apt itself resolves, downloads and verifies (the archive's signature, then the SHA256 of each index and package);
//! only its lists, cache and sources are ours. The mirror is the one that this machine already uses.

use crate::process;
use anyhow::{Context as _, bail, ensure};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Signs Debian's archive; from the package debian-archive-keyring, which is on every Debian machine.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How old the lists may grow before they are fetched again.
const LISTS_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A set of suites, with its state in a directory of its own.
pub(super) struct Archive {
    directory: PathBuf,
}

impl Archive {
    /// An archive of `suites` whose state is kept in `directory`.
    pub(super) fn open(directory: &Path, suites: &[String]) -> anyhow::Result<Self> {
        for child in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(child);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let sources = directory.join("sources.list");
        fs::write(&sources, sources_list(&mirrors()?, suites)?)
            .with_context(|| format!("write {}", sources.display()))?;
        Ok(Self { directory: directory.canonicalize()? })
    }

    /// Fetches the lists, unless they are recent.
    pub(super) fn update(&self) -> anyhow::Result<()> {
        let stamp = self.directory.join("updated");
        let age = fs::metadata(&stamp).and_then(|metadata| metadata.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age < LISTS_LIFETIME) {
            return Ok(());
        }
        // Without Error-Mode apt calls a failed download a warning, and succeeds.
        match self.output("apt-get", ["update", "--error-on=any"]) {
            Ok(_) => fs::write(&stamp, "").with_context(|| format!("write {}", stamp.display())),
            Err(error) if age.is_some() => {
                eprintln!("using the package lists of the last time: {error:#}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The packages of the kernel that the metapackage `meta` depends on now: their files' names, by package.
    pub(super) fn kernel_packages(&self, meta: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let depends = self.output("apt-cache", ["depends", "--recurse", "--important", meta])?;
        let packages: Vec<&str> = depends.lines().filter(|line| is_kernel_package(line)).collect();
        ensure!(!packages.is_empty(), "{meta} depends on no package of a kernel in {}", self.directory.display());
        let arguments = ["download", "--print-uris"].into_iter().chain(packages);
        let uris = self.output("apt-get", arguments)?;
        Ok(uris.lines().filter_map(file_of_uri).collect())
    }

    /// Downloads `packages` and unpacks all of them into `root`.
    pub(super) fn unpack<'a>(&self, packages: impl Iterator<Item = &'a String>, root: &Path) -> anyhow::Result<()> {
        let downloads = root.join("debs");
        fs::create_dir_all(&downloads).with_context(|| format!("create {}", downloads.display()))?;
        let arguments = ["download"].into_iter().chain(packages.map(String::as_str));
        process::output(self.command("apt-get", arguments).current_dir(&downloads))?;
        for deb in fs::read_dir(&downloads).with_context(|| format!("list {}", downloads.display()))? {
            process::output(Command::new("dpkg-deb").arg("--extract").arg(deb?.path()).arg(root))?;
        }
        fs::remove_dir_all(&downloads).with_context(|| format!("remove {}", downloads.display()))
    }

    fn output<I: AsRef<OsStr>>(&self, tool: &str, arguments: impl IntoIterator<Item = I>) -> anyhow::Result<String> {
        process::output(&mut self.command(tool, arguments))
    }

    fn command<I: AsRef<OsStr>>(&self, tool: &str, arguments: impl IntoIterator<Item = I>) -> Command {
        let directory = self.directory.display();
        let mut command = Command::new(tool);
        for option in [
            format!("Dir::Etc::sourcelist={directory}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={directory}/lists"),
            format!("Dir::Cache={directory}/cache"),
            // Nothing is installed in this world: the machine's own packages satisfy no dependency in it.
            "Dir::State::status=/dev/null".to_owned(),
            // Its hooks are for the machine's own lists, and its sandbox user cannot write into our directory.
            "APT::Update::Post-Invoke-Success=".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.args(arguments);
        command
    }
}

/// The repositories that this machine is configured with, by the label that their owner gave them.
fn mirrors() -> anyhow::Result<BTreeMap<String, String>> {
    let targets = process::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
    ]))?;
    Ok(targets.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
}

fn sources_list(mirrors: &BTreeMap<String, String>, suites: &[String]) -> anyhow::Result<String> {
    let mut lines = String::new();
    for suite in suites {
        let label = if suite.ends_with("-security") { "Debian-Security" } else { "Debian" };
        let Some(mirror) = mirrors.get(label) else {
            bail!("apt on this machine has no source labelled {label}: add one (or run `apt-get update` if it has)");
        };
        lines += &format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    }
    Ok(lines)
}

/// Whether a line of `apt-cache depends` names a package that carries a part of one kernel: linux-image-6.1.0-56-amd64,
/// and from 6.17 on linux-binary-, linux-modules- and linux-base-. A metapackage has no number after the part.
fn is_kernel_package(line: &str) -> bool {
    ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"]
        .iter()
        .filter_map(|part| line.strip_prefix(part))
        .any(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// Package and file of a line of `apt-get download --print-uris`: `'uri' file size hash`.
fn file_of_uri(line: &str) -> Option<(String, String)> {
    let file = line.split(' ').nth(1)?;
    let (package, _) = file.split_once('_')?;
    Some((package.to_owned(), file.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{file_of_uri, is_kernel_package, sources_list};
    use std::collections::BTreeMap;

    #[test]
    fn a_kernel_package_has_a_version_in_its_name() {
        let cases = [
            ("linux-image-6.1.0-56-amd64", true),
            ("linux-modules-7.3.4+deb13-amd64", true),
            ("linux-image-amd64", false),
            ("  Depends: linux-image-6.1.0-56-amd64", false),
            ("linux-base", false),
            ("initramfs-tools", false),
        ];
        for (line, expected) in cases {
            assert_eq!(is_kernel_package(line), expected, "{line}");
        }
    }

    #[test]
    fn a_download_line_gives_package_and_file() {
        let line = "'http://mirror/pool/a.deb' linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb 70550672 SHA256:00";
        let expected = ("linux-image-6.1.0-56-amd64", "linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb");
        assert_eq!(file_of_uri(line), Some((expected.0.to_owned(), expected.1.to_owned())));
    }

    #[test]
    fn security_suites_come_from_the_security_mirror() {
        let mirrors = [("Debian", "http://a/"), ("Debian-Security", "http://b/")];
        let mirrors: BTreeMap<_, _> = mirrors.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
        let list =
            sources_list(&mirrors, &["trixie".to_owned(), "trixie-security".to_owned()]).expect("both are known");
        let places: Vec<_> = list.lines().filter_map(|line| line.split_once("] ")).map(|(_, place)| place).collect();
        assert_eq!(places, ["http://a/ trixie main", "http://b/ trixie-security main"]);
        assert!(sources_list(&BTreeMap::new(), &["trixie".to_owned()]).is_err());
    }
}
