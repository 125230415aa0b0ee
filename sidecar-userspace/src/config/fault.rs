//! What can be wrong with a configuration, and where.

use std::{fmt, io, path::Path, sync::Arc};

use super::words::one_line;

/// Where a value came from. Later variants beat earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Nobody gave a value.
    Default,
    /// A file as a whole.
    File(Arc<Path>),
    /// A place in a file; line and column count characters from 1.
    Line {
        /// The file.
        file: Arc<Path>,
        /// The line.
        line: u64,
        /// The column.
        column: u64,
    },
    /// An environment variable, by name.
    Environment(String),
    /// A `--set` flag: what stands before its `=`.
    Flag(String),
    /// Nobody gave a value, and another key has a default of its own for this one.
    Because {
        /// That key.
        of: &'static str,
        /// Where its value came from.
        place: Box<Place>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file) => f.write_str(&one_line(&file.to_string_lossy())),
            Self::Line { file, line, column } => write!(f, "{}:{line}:{column}", one_line(&file.to_string_lossy())),
            Self::Environment(name) => f.write_str(&one_line(name)),
            Self::Flag(key) => write!(f, "--set {}", one_line(key)),
            Self::Because { of, place } => write!(f, "default because of {of} ({place})"),
        }
    }
}

/// One thing that is wrong. The texts tell what is allowed or what was probably meant.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be opened or read.
    #[error("cannot read the configuration: {0}; check the path given with `--config`")]
    Unreadable(io::Error),
    /// The path names a directory.
    #[error("is a directory; name the configuration file in it")]
    Directory,
    /// The file is larger than any sensible configuration.
    #[error("is larger than {limit} bytes; is this the configuration file?")]
    TooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// The file is not UTF-8.
    #[error("the byte {byte:#04x} is not UTF-8 text; save the file as UTF-8")]
    NotUtf8 {
        /// The first byte that does not belong.
        byte: u8,
    },
    /// The file is not the YAML that we accept.
    #[error("not valid YAML: {0}")]
    Syntax(String),
    /// Nothing, or comments alone, where there were keys.
    #[error("has no key; was it cut off? If the defaults are meant, write `{{}}`")]
    Nothing,
    /// The document is not a mapping.
    #[error("expected sections such as `capture:`, found {found}")]
    NotSections {
        /// What stands there instead.
        found: &'static str,
    },
    /// No such key or section.
    #[error("unknown key {path}; {suggestion}")]
    UnknownKey {
        /// The whole path as given, quoted.
        path: String,
        /// What to write instead.
        suggestion: String,
    },
    /// A key stands twice in one mapping.
    #[error("duplicate key {path}; it was given before at {first}")]
    DuplicateKey {
        /// The key's path, quoted.
        path: String,
        /// Where it stood first.
        first: Place,
    },
    /// A section was given a value of its own.
    #[error("`{path}` is a section, not a value; set a key in it: {keys}")]
    SectionAsValue {
        /// The section's path.
        path: String,
        /// Its keys.
        keys: String,
    },
    /// A value is not one of those that the key allows.
    #[error("{path}: {reason}")]
    BadValue {
        /// The key's path.
        path: &'static str,
        /// What was given, and what is allowed.
        reason: String,
    },
    /// A `SIDECAR_…` variable that belongs to no key.
    #[error("unknown variable; {suggestion}")]
    UnknownVariable {
        /// What to write instead.
        suggestion: String,
    },
    /// A `SIDECAR_…` variable whose name or value is not text.
    #[error("the variable is not UTF-8 text")]
    VariableNotUtf8,
    /// A `--set` without `=`.
    #[error("expected `--set KEY=VALUE`, such as `--set capture.on_failure=closed`")]
    NotAnAssignment,
    /// Two listeners would have the same port.
    #[error("{path}: port {port} is already taken by `{other}` ({place}); every listener needs a port of its own")]
    PortTaken {
        /// The key that was read later.
        path: &'static str,
        /// The port.
        port: u16,
        /// The key that has the port.
        other: &'static str,
        /// Where that one was set.
        place: Place,
    },
    /// A workload has one identity, and that has one source.
    #[error("{path}: `{other}` ({place}) is a source of identity already; leave one of them out")]
    SecondIdentity {
        /// A key of the source that is one too many.
        path: &'static str,
        /// A key of the other source.
        other: &'static str,
        /// Where that one was set.
        place: Place,
    },
    /// A source of identity was given in part.
    #[error("`{path}` is given in part; set {missing} too")]
    PartMissing {
        /// The source's section.
        path: &'static str,
        /// Its keys that have no value.
        missing: String,
    },
    /// Mutual TLS is demanded of a workload that cannot prove who it is.
    #[error("{path}: `strict` needs an identity; set {sources}")]
    StrictWithoutIdentity {
        /// The key that demands it.
        path: &'static str,
        /// The keys that would give an identity.
        sources: &'static str,
    },
}

/// A problem and its place.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Fault {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub problem: Problem,
}

/// Everything that is wrong with a configuration: at least one fault, in the order of the places. Displayed one per line.
#[derive(Debug)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// `Err` with all faults in order unless there are none.
    pub(super) fn into_result(mut faults: Vec<Fault>) -> Result<(), Self> {
        if faults.is_empty() {
            return Ok(());
        }
        faults.sort_by(|a, b| a.place.cmp(&b.place));
        Err(Self(faults))
    }

    /// The faults.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
