//! A configuration as its sources were read: for a process that may not read them itself, and for the next one after it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    Fault, Faults, Loaded, Place, Problem, Sources,
    document::{self, Node, Value},
    load,
};

/// The text of the file, the flags, and the variables of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    file: Option<PathBuf>,
    parts: Parts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    /// For messages.
    name: Option<String>,
    text: Option<String>,
    overrides: Vec<String>,
    env: Vec<(String, String)>,
}

impl Loaded {
    /// What it was read from.
    pub fn snapshot(&self) -> Snapshot {
        let Sources { file, text, overrides, env } = &self.sources;
        // A variable that is not UTF-8 is a fault, and there was none.
        let words = |(name, value): &(OsString, OsString)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        };
        let name = file.as_ref().map(|file| file.to_string_lossy().into_owned());
        let env = env.iter().map(words).collect();
        Snapshot { file: file.clone(), parts: Parts { name, text: text.clone(), overrides: overrides.clone(), env } }
    }
}

impl Snapshot {
    /// The same without what was in the file: enough to read it again.
    pub fn without_text(&self) -> Self {
        Self { file: self.file.clone(), parts: Parts { text: None, ..self.parts.clone() } }
    }

    /// The same with the file as it is now.
    ///
    /// # Errors
    /// The file cannot be read, or there is nothing in it: it may be the rest of one that a full disk has cut off, and to take it
    /// for the defaults would drop every rule.
    pub fn read_again(&self) -> Result<Self, Fault> {
        let text = self.file.as_ref().map(|file| text_with_keys(&Arc::from(file.as_path()))).transpose()?;
        Ok(Self { file: self.file.clone(), parts: Parts { text, ..self.parts.clone() } })
    }

    /// The configuration of these sources.
    ///
    /// # Errors
    /// [`Faults`] in it.
    pub fn load(&self) -> Result<Loaded, Faults> {
        let Parts { name, text, overrides, env } = self.parts.clone();
        let env = env.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        load(&Sources { file: name.map(PathBuf::from), text, overrides, env })
    }

    /// For another process.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.parts).expect("text and lists of text can always be written")
    }

    /// From another process.
    ///
    /// # Errors
    /// The bytes are not those of [`Snapshot::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let parts: Parts = serde_json::from_slice(bytes)?;
        Ok(Self { file: parts.name.as_ref().map(PathBuf::from), parts })
    }
}

/// What is in the file, if there is a key in it.
fn text_with_keys(file: &Arc<Path>) -> Result<String, Fault> {
    let text = load::read(file)?;
    // What is not valid is found where it is taken.
    if matches!(document::parse(file, &text), Ok(Node { value: Value::Null, .. })) {
        return Err(Fault { place: Place::File(Arc::clone(file)), problem: Problem::Nothing });
    }
    Ok(text)
}
