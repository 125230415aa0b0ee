//! A suite of the Debian archive, read without adding it to the system's apt.
//!
//! The mirror is the one the machine's apt sources name. Nothing is believed unsigned: the suite's InRelease must carry
//! a signature of the Debian archive's keyring, it gives the package index's hash, and the index gives the package's.

mod sources;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{interrupt, process};

/// apt's own downloader: it honours the machine's proxies, mirrors and credentials, and checks the hash.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite for one architecture, its indices verified.
pub(crate) struct Suite {
    mirror: String,
    packages: Vec<Package>,
}

/// A package the suite offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    filename: String,
    sha256: String,
}

impl Suite {
    /// Reads the `main` component of `suite` from the first configured mirror that has it, working in `folder`.
    ///
    /// # Errors
    /// When no mirror is configured, none has the suite, or a signature or hash is wrong.
    pub(crate) fn open(suite: &str, folder: &Path) -> Result<Self> {
        let mirrors = sources::mirrors()?;
        let mut failures = Vec::new();
        for mirror in &mirrors {
            interrupt::check()?;
            match Self::read(mirror, suite, folder) {
                Ok(packages) => return Ok(Self { mirror: mirror.clone(), packages }),
                Err(error) => failures.push(format!("{mirror}: {error:#}")),
            }
        }
        interrupt::check()?;
        bail!("no configured mirror gives Debian's suite {suite}: {}", failures.join("; "))
    }

    /// The newest package called `name` whose version `accepts` (the archive lists versions in rising order).
    pub(crate) fn find(&self, name: &str, accepts: impl Fn(&str) -> bool) -> Option<&Package> {
        self.packages.iter().rfind(|package| package.name == name && accepts(&package.version))
    }

    /// Downloads a package into `folder` and checks its hash.
    ///
    /// # Errors
    /// When the download fails or the hash is another.
    pub(crate) fn download(&self, package: &Package, folder: &Path) -> Result<PathBuf> {
        let target = folder.join(format!("{}.deb", package.name));
        download(&format!("{}/{}", self.mirror, package.filename), &target, Some(&package.sha256))?;
        Ok(target)
    }

    fn read(mirror: &str, suite: &str, folder: &Path) -> Result<Vec<Package>> {
        let base = format!("{mirror}/dists/{suite}");
        let release = folder.join("InRelease");
        download(&format!("{base}/InRelease"), &release, None)?;
        let release = verified(&release, folder)?;
        let arch = process::output(Command::new("dpkg").arg("--print-architecture"))?;
        // Architecture-independent packages are listed for each architecture too, see
        // No-Support-for-Architecture-all in the Release file.
        let index = format!("main/binary-{}/Packages.xz", arch.trim());
        let sha256 = sha256_of(&release, &index).with_context(|| format!("InRelease does not list {index}"))?;
        // By its hash: the plain name changes under a reader when the mirror is being updated.
        let (parent, _) = index.rsplit_once('/').unwrap_or((&index, ""));
        let packed = folder.join("Packages.xz");
        download(&format!("{base}/{parent}/by-hash/SHA256/{sha256}"), &packed, Some(&sha256))?;
        let text = process::output(Command::new(APT_HELPER).arg("cat-file").arg(&packed))?;
        Ok(parse_packages(&text))
    }
}

fn download(url: &str, target: &Path, sha256: Option<&str>) -> Result<()> {
    let mut helper = Command::new(APT_HELPER);
    // As this user: `_apt` may not write into our folder.
    helper.args(["-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=30"]);
    helper.arg("download-file").arg(url).arg(target);
    helper.args(sha256.map(|hash| format!("SHA256:{hash}")));
    process::output(&mut helper)?;
    if !target.is_file() {
        bail!("{url} left no file {}", target.display());
    }
    Ok(())
}

/// The signed part of a clear-signed file, if a key of the Debian archive signed it.
///
/// gpgv's exit code is not asked: Debian signs with the keys of two releases, and an older keyring knows only one.
fn verified(file: &Path, folder: &Path) -> Result<String> {
    if process::find("gpgv").is_none() || !Path::new(KEYRING).exists() {
        bail!("the archive's signature cannot be checked: run `apt-get install gpgv debian-archive-keyring`");
    }
    let plain = folder.join("Release");
    let mut gpgv = Command::new("gpgv");
    gpgv.args(["--keyring", KEYRING, "--status-fd", "1", "--output"]).arg(&plain).arg(file);
    let output = gpgv.output().context("cannot start gpgv")?;
    if !is_signed(&String::from_utf8_lossy(&output.stdout)) {
        bail!("{}: no good signature of {KEYRING}", file.display());
    }
    fs::read_to_string(&plain).with_context(|| format!("cannot read {}", plain.display()))
}

/// At least one good signature and none that is bad.
fn is_signed(status: &str) -> bool {
    let has = |word: &str| status.lines().any(|line| line.split_whitespace().nth(1) == Some(word));
    has("VALIDSIG") && has("GOODSIG") && !has("BADSIG")
}

/// The hash in the SHA256 section of a Release file.
fn sha256_of(release: &str, path: &str) -> Option<String> {
    let section = release.lines().skip_while(|line| *line != "SHA256:").skip(1);
    section.take_while(|line| line.starts_with(' ')).find_map(|line| {
        let mut words = line.split_whitespace();
        let hash = words.next()?;
        (words.nth(1) == Some(path) && hash.len() == 64).then(|| hash.to_owned())
    })
}

fn parse_packages(text: &str) -> Vec<Package> {
    text.split("\n\n").filter_map(parse_package).collect()
}

fn parse_package(stanza: &str) -> Option<Package> {
    let field = |name: &str| {
        stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(|value| value.trim().to_owned())
    };
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        filename: field("Filename")?,
        sha256: field("SHA256")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";

    #[test]
    fn reads_an_index_and_finds_the_version_asked_for() {
        let stanza = |version: &str| {
            format!("Package: rust-src\nVersion: {version}\nFilename: pool/{version}.deb\nSHA256: {HASH}\n")
        };
        let text = [stanza("1.95.0+dfsg1-1"), stanza("1.95.0+dfsg1-2"), stanza("1.96.1+dfsg1-2")].join("\n");
        let suite = Suite { mirror: String::new(), packages: parse_packages(&text) };
        let found = suite.find("rust-src", |version| version.starts_with("1.95.0+")).map(|p| p.version.as_str());
        assert_eq!(found, Some("1.95.0+dfsg1-2"));
        assert_eq!(suite.find("rust-src", |version| version.starts_with("1.94.")), None);
    }

    #[test]
    fn takes_the_hash_from_the_sha256_section_only() {
        let release = format!("MD5Sum:\n {HASH} 1 main/Packages.xz\nSHA256:\n {HASH} 1 main/other\nDate: now\n");
        assert_eq!(sha256_of(&release, "main/other").as_deref(), Some(HASH));
        assert_eq!(sha256_of(&release, "main/Packages.xz"), None);
    }

    #[test]
    fn believes_a_good_signature_beside_an_unknown_one_but_not_beside_a_bad_one() {
        let good = "[GNUPG:] GOODSIG A Debian\n[GNUPG:] VALIDSIG A\n";
        assert!(is_signed(&format!("{good}[GNUPG:] NO_PUBKEY B\n")));
        assert!(!is_signed(&format!("{good}[GNUPG:] BADSIG B\n")));
        assert!(!is_signed("[GNUPG:] NO_PUBKEY B\n"));
        assert!(!is_signed("[GNUPG:] NOTATION_DATA VALIDSIG GOODSIG\n"));
    }
}
