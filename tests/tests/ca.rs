//! `sidecar ca` as an operator uses it, judged by OpenSSL.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidecar_tests::harness::Sidecar;

/// An authority in a directory that goes away with the test.
struct Ca(PathBuf);

impl Ca {
    fn empty(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("ca-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn new(name: &str) -> Result<Self> {
        let ca = Self::empty(name)?;
        ca.good(&["init", "ca", "--trust-domain", "td.example"])?;
        Ok(ca)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn run(&self, args: &[&str]) -> Result<Output> {
        Ok(Sidecar::program()?.arg("ca").args(args).current_dir(&self.0).output()?)
    }

    /// What it says when it succeeds.
    fn good(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        ensure!(output.status.success() && err.is_empty(), "{args:?}: {}: {out}{err}", output.status);
        Ok(out)
    }

    /// What it says when it fails with this exit code.
    fn bad(&self, args: &[&str], code: i32) -> Result<String> {
        let output = self.run(args)?;
        ensure!(output.status.code() == Some(code), "{args:?}: {}: {}", output.status, text(&output.stderr));
        ensure!(output.stdout.is_empty(), "{args:?} says: {}", text(&output.stdout));
        Ok(text(&output.stderr))
    }

    fn issue(&self, out: &str) -> Result<()> {
        self.good(&["issue", "ca", "--namespace", "shop", "--service-account", "web", "--out", out]).map(drop)
    }

    /// Whether OpenSSL finds a path from the certificate to these roots.
    fn verifies(&self, roots: &str, certificate: &str) -> Result<bool> {
        let mut openssl = Command::new("openssl");
        let args = ["verify", "-x509_strict", "-purpose", "sslserver", "-no-CApath", "-CAfile", roots, certificate];
        Ok(openssl.args(args).current_dir(&self.0).output().context("openssl")?.status.success())
    }

    /// Every file below it, with its content.
    fn snapshot(&self) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_symlink() {
                    found.push((path.clone(), fs::read_link(&path)?.into_os_string().into_encoded_bytes()));
                } else if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push((path.clone(), fs::read(&path)?));
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.permissions().mode() & 0o777)
}

fn openssl(ca: &Ca, certificate: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-in", certificate]).args(args).current_dir(&ca.0);
    Ok(text(&command.output().context("openssl")?.stdout))
}

#[test]
fn what_it_issues_is_an_svid_that_openssl_verifies() -> Result<()> {
    let ca = Ca::new("issue")?;
    ca.issue("web")?;
    ensure!(ca.verifies("web/roots.pem", "web/cert.pem")?);
    let other = Ca::new("stranger")?;
    other.issue("web")?;
    let foreign = other.at("web/cert.pem");
    ensure!(!ca.verifies("web/roots.pem", foreign.to_str().context("path")?)?, "a stranger's certificate verifies");

    let extensions =
        openssl(&ca, "web/cert.pem", &["-ext", "subjectAltName,keyUsage,extendedKeyUsage,basicConstraints"])?;
    for part in [
        "Subject Alternative Name: critical\n    URI:spiffe://td.example/ns/shop/sa/web\n",
        "Key Usage: critical\n    Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "CA:FALSE",
    ] {
        ensure!(extensions.contains(part), "{part} is missing:\n{extensions}");
    }
    // The key is the certificate's.
    let of_key = Command::new("openssl").args(["pkey", "-pubout", "-in", "web/key.pem"]).current_dir(&ca.0).output()?;
    ensure!(text(&of_key.stdout) == openssl(&ca, "web/cert.pem", &["-pubkey"])?);
    for (file, expected) in [("web/key.pem", 0o600), ("ca/ca.key", 0o600), ("web/cert.pem", 0o644), ("ca", 0o700)] {
        ensure!(mode(&ca.at(file))? == expected, "{file}: {:o}", mode(&ca.at(file))?);
    }
    Ok(())
}

#[test]
fn the_files_change_together_and_nothing_old_stays() -> Result<()> {
    let ca = Ca::new("swap")?;
    ca.issue("web")?;
    let set = |ca: &Ca| fs::read_link(ca.at("web/..data"));
    let (first, before) = (set(&ca)?, fs::read(ca.at("web/cert.pem"))?);
    // What a command leaves that was killed halfway.
    fs::create_dir(ca.at("web/..1-1"))?;
    fs::write(ca.at("web/..1-1/key.pem"), "half")?;
    ca.good(&["issue", "ca", "--id", "spiffe://td.example/db", "--lifetime", "90s", "--out", "web"])?;
    ensure!(set(&ca)? != first && fs::read(ca.at("web/cert.pem"))? != before);
    let names: Vec<_> = fs::read_dir(ca.at("web"))?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(names.len() == 5, "three links, one set, one link to it: {names:?}");
    Ok(())
}

#[test]
fn commands_at_the_same_time_do_one_after_the_other() -> Result<()> {
    let ca = Ca::new("parallel")?;
    let mut running = Vec::new();
    for number in 0..8 {
        let id = format!("spiffe://td.example/{number}");
        let mut command = Sidecar::program()?;
        command.args(["ca", "issue", "ca", "--out", "web", "--id", &id]).current_dir(&ca.0).stdout(Stdio::null());
        running.push(command.spawn()?);
    }
    for mut command in running {
        ensure!(command.wait()?.success());
    }
    ensure!(ca.verifies("web/roots.pem", "web/cert.pem")?);
    let key = Command::new("openssl").args(["pkey", "-pubout", "-in", "web/key.pem"]).current_dir(&ca.0).output()?;
    ensure!(text(&key.stdout) == openssl(&ca, "web/cert.pem", &["-pubkey"])?, "the key of another certificate");
    Ok(())
}

#[test]
fn the_root_is_replaced_in_three_steps_that_overlap() -> Result<()> {
    let ca = Ca::new("rotate")?;
    ca.issue("first")?;
    ca.bad(&["rotate", "ca", "--finish"], 1)?;

    ensure!(ca.good(&["rotate", "ca"])?.contains("step 1 of 3"));
    ca.issue("announced")?;
    ensure!(ca.bad(&["rotate", "ca", "--finish"], 1)?.contains("the old root still issues"));

    ensure!(ca.good(&["rotate", "ca"])?.contains("--finish"));
    ca.issue("switched")?;
    ensure!(ca.bad(&["rotate", "ca"], 1)?.contains("--finish"));
    // Old and new certificates are believed by everybody who has heard of the new root.
    for (roots, certificate, expected) in [
        ("first/roots.pem", "announced/cert.pem", true),
        ("announced/roots.pem", "switched/cert.pem", true),
        ("switched/roots.pem", "first/cert.pem", true),
        ("first/roots.pem", "switched/cert.pem", false),
    ] {
        ensure!(ca.verifies(roots, certificate)? == expected, "{certificate} by {roots}");
    }

    ensure!(ca.good(&["rotate", "ca", "--finish"])?.contains("step 3 of 3"));
    ca.issue("finished")?;
    ensure!(ca.verifies("finished/roots.pem", "switched/cert.pem")?);
    ensure!(!ca.verifies("finished/roots.pem", "first/cert.pem")?);
    ensure!(!ca.at("ca/next.key").exists(), "the key of the next root stays");
    Ok(())
}

#[test]
fn it_says_what_is_wrong_and_leaves_everything_as_it_was() -> Result<()> {
    let ca = Ca::new("wrong")?;
    ca.issue("web")?;
    fs::create_dir(ca.at("foreign"))?;
    fs::write(ca.at("foreign/key.pem"), "somebody's")?;
    fs::write(ca.at("file"), "")?;
    for (name, file, text) in [
        ("keyless", "ca.key", None),
        ("damaged", "ca.key", Some("no key".to_owned())),
        ("doubled", "ca.pem", Some(fs::read_to_string(ca.at("ca/ca.pem"))?.repeat(2))),
        ("unreadable", "ca.pem", None),
    ] {
        fs::create_dir(ca.at(name))?;
        for of_authority in ["ca.pem", "ca.key", "roots.pem"] {
            fs::copy(ca.at("ca").join(of_authority), ca.at(name).join(of_authority))?;
        }
        fs::remove_file(ca.at(name).join(file))?;
        if let Some(text) = text {
            fs::write(ca.at(name).join(file), text)?;
        }
    }
    fs::create_dir(ca.at("unreadable/ca.pem"))?;
    let before = ca.snapshot()?;
    let issue = |more: &[&'static str]| [&["issue", "ca", "--out"], more].concat();
    let rows: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec!["init", "ca", "--trust-domain", "td"], 1, "already holds an authority"),
        (vec!["init", "new", "--trust-domain", "TD"], 2, "TD: the trust domain may hold lower-case"),
        (vec!["init", "new", "--trust-domain", "td", "--lifetime", "ten"], 2, "`ten` is no lifetime"),
        (vec!["init", "new", "--trust-domain", "td", "--lifetime", "0s"], 2, "a lifetime of 0ns is not possible"),
        (vec!["init", "file", "--trust-domain", "td"], 1, "file: "),
        (issue(&["web", "--id", "spiffe://other/a"]), 2, "not of this authority's trust domain td.example"),
        (issue(&["web", "--id", "spiffe://td.example"]), 2, "the path is missing"),
        (issue(&["web", "--namespace", "a/b", "--service-account", ".."]), 2, "the path may hold"),
        (issue(&["web", "--namespace", "shop"]), 2, "--service-account"),
        (issue(&["web"]), 2, "--id"),
        (issue(&["foreign", "--id", "spiffe://td.example/a"]), 1, "foreign/key.pem exists and was not written by"),
        (vec!["issue", "nowhere", "--out", "web", "--id", "spiffe://td/a"], 1, "`sidecar ca init` makes an authority"),
        (vec!["rotate", "web"], 1, "web/ca.pem: No such file or directory (os error 2); restore it from the backup"),
        (
            vec!["rotate", "keyless"],
            1,
            "keyless/ca.key: No such file or directory (os error 2); restore it from the backup",
        ),
        (vec!["init", "keyless", "--trust-domain", "td"], 1, "already holds an authority"),
        (vec!["rotate", "damaged"], 1, "damaged/ca.key: not a usable key ("),
        (vec!["rotate", "doubled"], 1, "doubled/ca.pem: 2 certificates; it must hold exactly one: restore it from"),
        (vec!["rotate", "unreadable"], 1, "unreadable/ca.pem: Is a directory (os error 21); "),
        (
            vec!["inspect", "nowhere"],
            1,
            "nowhere: No such file or directory (os error 2); restore it, or correct the path",
        ),
        (vec!["inspect", "file"], 1, "no certificate in it"),
    ];
    for (args, code, part) in rows {
        let said = ca.bad(&args, code)?;
        ensure!(said.contains(part), "{args:?}: {part} is missing: {said}");
        ensure!(ca.snapshot()? == before, "{args:?} left something");
    }
    Ok(())
}

#[test]
fn inspect_tells_good_from_bad_for_people_and_programs() -> Result<()> {
    let ca = Ca::new("inspect")?;
    ca.issue("web")?;
    let said = ca.good(&["inspect", "web"])?;
    for part in ["workload spiffe://td.example/ns/shop/sa/web", "authority spiffe://td.example", "digitalSignature"] {
        ensure!(said.contains(part), "{part} is missing: {said}");
    }
    let serial = openssl(&ca, "web/cert.pem", &["-serial"])?.trim().replace("serial=", "").to_lowercase();
    let json: Value = serde_json::from_str(&ca.good(&["inspect", "web/cert.pem", "-o", "json"])?)?;
    let told = &json[0];
    ensure!(told["serial"].as_str().context("serial")?.replace(':', "") == serial, "{told} but {serial}");
    ensure!(told["id"] == "spiffe://td.example/ns/shop/sa/web" && told["problems"] == Value::Array(vec![]));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let left = told["not_after_timestamp"].as_u64().context("not_after_timestamp")? - now;
    ensure!((86_390..=86_400).contains(&left), "{left} s left of 24 h");

    // One that OpenSSL makes by default: no SPIFFE ID, an authority without keyCertSign.
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "bad.key", "-out", "bad.pem"])
        .current_dir(&ca.0)
        .output()?;
    ensure!(made.status.success(), "{}", text(&made.stderr));
    let output = ca.run(&["inspect", "bad.pem"])?;
    ensure!(output.status.code() == Some(1) && text(&output.stdout).contains("PROBLEM      key_usage: its key usage"));
    Ok(())
}
