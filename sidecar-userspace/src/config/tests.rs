//! What the configuration promises, on real files.

use std::{ffi::OsString, fs, path::PathBuf, time::Duration};

use super::{keys::KEYS, *};

mod denials;
mod faults;
mod full;
mod hostile;
mod layers;
mod mesh;

/// A file of its own that goes away with the test.
struct TestFile(PathBuf);

impl TestFile {
    fn new(content: impl AsRef<[u8]>) -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sidecar-config-{}-{number}.yaml", std::process::id()));
        fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn load_file(content: impl AsRef<[u8]>) -> Result<Loaded, Faults> {
    let file = TestFile::new(content);
    load(&Sources { file: Some(file.0.clone()), ..Sources::default() })
}

/// The faults of a file as they are printed, with `f` for the file's name.
fn faults_of(content: impl AsRef<[u8]>) -> Vec<String> {
    let file = TestFile::new(content);
    let name = file.0.display().to_string();
    match load(&Sources { file: Some(file.0.clone()), ..Sources::default() }) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.to_string().lines().map(|line| line.replace(&name, "f")).collect(),
    }
}

fn pairs(env: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    env.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// The configuration as if its rules stood nowhere: a copy of a rule stands elsewhere.
fn without_places(config: &Config) -> Config {
    let mut config = config.clone();
    config.authorization.iter_mut().for_each(|rule| rule.place = RulePlace::default());
    config
}
