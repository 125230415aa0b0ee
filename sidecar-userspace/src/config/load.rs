//! Layering: the defaults, then the file, then the environment, then the flags.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Config,
    document::{self, Node, Value},
    draft::Draft,
    fault::{Fault, Faults, Place, Problem},
    keys::{self, KEYS, Key, VARIABLE_PREFIX},
    words::{given, nearest, quoted},
};

/// Bytes of a file that are read at most. A list of ten thousand networks fits.
const MAX_FILE: u64 = 1 << 20;

/// Where a configuration is read from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The configuration file, if any.
    pub file: Option<PathBuf>,
    /// What is in the file, if somebody has read it already.
    pub text: Option<String>,
    /// `KEY=VALUE` pairs of `--set` flags.
    pub overrides: Vec<String>,
    /// Environment variables; those that do not begin with `SIDECAR_` are passed over.
    pub env: Vec<(OsString, OsString)>,
}

impl Sources {
    /// The file, the flags, and the environment of this process.
    pub fn of_process(file: Option<PathBuf>, overrides: Vec<String>) -> Self {
        Self { file, text: None, overrides, env: std::env::vars_os().collect() }
    }

    /// The same as they were read, without what belongs to others, which may be secret.
    fn of_ours(&self, text: Option<String>) -> Self {
        let ours = |(name, _): &&(OsString, OsString)| name.as_encoded_bytes().starts_with(VARIABLE_PREFIX.as_bytes());
        let env = self.env.iter().filter(ours).cloned().collect();
        Self { file: self.file.clone(), text, overrides: self.overrides.clone(), env }
    }
}

/// A configuration, and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    origins: BTreeMap<&'static str, Place>,
    pub(super) sources: Sources,
}

impl Loaded {
    /// Where the value of the key with this path came from.
    pub fn origin(&self, path: &str) -> &Place {
        self.origins.get(path).unwrap_or(&Place::Default)
    }

    /// Takes the rules of `newer`, and leaves everything else as it is.
    pub fn take_authorization(&mut self, newer: &Self) {
        const PATH: &str = "authorization";
        self.config.authorization.clone_from(&newer.config.authorization);
        self.origins.insert(PATH, newer.origin(PATH).clone());
    }
}

/// Reads all sources and returns either a configuration or everything that is wrong with them.
///
/// # Errors
/// [`Faults`] in every layer, also of values that a later layer would have replaced.
pub fn load(sources: &Sources) -> Result<Loaded, Faults> {
    let mut reader = Reader {
        draft: Draft::new(Config::default()),
        origins: BTreeMap::new(),
        refused: BTreeSet::new(),
        faults: Vec::new(),
    };
    let text = sources.file.as_ref().and_then(|path| reader.file(path, sources.text.as_ref()));
    reader.environment(&sources.env);
    for assignment in &sources.overrides {
        reader.flag(assignment);
    }
    reader.check();
    Faults::into_result(reader.faults)?;
    Ok(Loaded { config: reader.draft.into_config(), origins: reader.origins, sources: sources.of_ours(text) })
}

/// The configuration so far.
pub(super) struct Reader {
    pub(super) draft: Draft,
    pub(super) origins: BTreeMap<&'static str, Place>,
    /// Keys of which some value was refused; what the configuration has for them is not what was meant.
    pub(super) refused: BTreeSet<&'static str>,
    faults: Vec<Fault>,
}

impl Reader {
    pub(super) fn fault(&mut self, place: Place, problem: Problem) {
        self.faults.push(Fault { place, problem });
    }

    /// Where the value of the key with this path came from.
    pub(super) fn origin(&self, path: &str) -> Place {
        self.origins.get(path).cloned().unwrap_or(Place::Default)
    }

    fn set(&mut self, key: &'static Key, given: &Node) {
        match key.setting.set(&mut self.draft, given) {
            Ok(()) => drop(self.origins.insert(key.path, given.place.clone())),
            Err(refusals) => {
                self.refused.insert(key.path);
                for refusal in refusals {
                    self.fault(refusal.place, Problem::BadValue { path: key.path, reason: refusal.reason });
                }
            }
        }
    }

    /// Reads the file, unless that has been done, and returns what is in it.
    fn file(&mut self, path: &Path, known: Option<&String>) -> Option<String> {
        let file: Arc<Path> = path.into();
        let text = match known.map_or_else(|| read(&file), |text| Ok(text.clone())) {
            Ok(text) => text,
            Err(fault) => {
                self.faults.push(fault);
                return None;
            }
        };
        match document::parse(&file, &text) {
            Ok(Node { value: Value::Null, .. }) => {}
            Ok(Node { value: Value::Map(entries), .. }) => self.section("", entries),
            Ok(Node { place, value }) => self.fault(place, Problem::NotSections { found: value.kind() }),
            Err(fault) => self.faults.push(fault),
        }
        Some(text)
    }

    fn section(&mut self, section: &str, entries: Vec<(String, Place, Node)>) {
        let mut seen: BTreeMap<String, Place> = BTreeMap::new();
        for (name, place, node) in entries {
            let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            if let Some(first) = seen.get(&name) {
                self.fault(place, Problem::DuplicateKey { path: given(&path), first: first.clone() });
                continue;
            }
            if !keys::names_in(section).contains(&name.as_str()) {
                let suggestion = suggest_key(section, &name);
                self.fault(place.clone(), Problem::UnknownKey { path: given(&path), suggestion });
            } else if let Some(key) = keys::find(&path) {
                self.set(key, &node);
            } else {
                match node.value {
                    Value::Map(entries) => self.section(&path, entries),
                    // A section whose keys are all commented out.
                    Value::Null => {}
                    _ => self.fault(node.place, section_as_value(path)),
                }
            }
            seen.insert(name, place);
        }
    }

    fn environment(&mut self, env: &[(OsString, OsString)]) {
        for (name, value) in env {
            if !name.as_encoded_bytes().starts_with(VARIABLE_PREFIX.as_bytes()) {
                continue;
            }
            let place = Place::Environment(name.to_string_lossy().into_owned());
            match (name.to_str(), value.to_str()) {
                (Some(name), Some(value)) => self.variable(name, value, place),
                _ => self.fault(place, Problem::VariableNotUtf8),
            }
        }
    }

    fn variable(&mut self, name: &str, value: &str, place: Place) {
        if is_service_link(name, value) {
            return;
        }
        if let Some(key) = KEYS.iter().find(|key| key.variable() == name) {
            return self.set(key, &Node { place, value: Value::Line(value.to_owned()) });
        }
        let suggestion = suggest_variable(name.trim_start_matches(VARIABLE_PREFIX));
        self.fault(place, Problem::UnknownVariable { suggestion });
    }

    fn flag(&mut self, assignment: &str) {
        let Some((path, value)) = assignment.split_once('=') else {
            return self.fault(Place::Flag(assignment.to_owned()), Problem::NotAnAssignment);
        };
        let path = path.trim();
        let place = Place::Flag(path.to_owned());
        if let Some(key) = keys::find(path) {
            self.set(key, &Node { place, value: Value::Line(value.to_owned()) });
        } else if !path.is_empty() && !keys::names_in(path).is_empty() {
            self.fault(place, section_as_value(path.to_owned()));
        } else {
            let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
            let suggestion = suggest_key(section, name);
            self.fault(place, Problem::UnknownKey { path: given(path), suggestion });
        }
    }
}

/// Reads a whole file of bounded size as text.
pub(super) fn read(file: &Arc<Path>) -> Result<String, Fault> {
    let whole = |problem| Fault { place: Place::File(file.clone()), problem };
    let unreadable = |error| whole(Problem::Unreadable(error));
    let opened = File::open(file).map_err(unreadable)?;
    if opened.metadata().map_err(unreadable)?.is_dir() {
        return Err(whole(Problem::Directory));
    }
    let mut bytes = Vec::new();
    opened.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(whole(Problem::TooLarge { limit: MAX_FILE }));
    }
    String::from_utf8(bytes).map_err(|error| {
        let (valid, rest) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
        let before = String::from_utf8_lossy(valid);
        let last_line = before.rsplit('\n').next().unwrap_or_default();
        let place = Place::Line {
            file: file.clone(),
            line: 1 + before.matches('\n').count() as u64,
            column: 1 + last_line.chars().count() as u64,
        };
        Fault { place, problem: Problem::NotUtf8 { byte: rest.first().copied().unwrap_or_default() } }
    })
}

/// Kubernetes (and Docker links before it) puts the addresses of every Service into the environment of every pod of
/// the namespace. For a Service named `sidecar` or `sidecar-x` these variables begin like ours.
fn is_service_link(name: &str, value: &str) -> bool {
    let protocol = |text: &str| ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    let of_port = ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| name.contains(protocol));
    protocol(value)
        || name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.contains("_PORT_") && of_port)
}

fn section_as_value(path: String) -> Problem {
    let keys = quoted(keys::names_in(&path));
    Problem::SectionAsValue { path, keys }
}

/// What to write instead of an unknown `name` in `section`.
fn suggest_key(section: &str, name: &str) -> String {
    if let Some((section, last)) = name.rsplit_once('.')
        && keys::find(name).is_some()
    {
        return format!("sections are nested; write `{last}:` below `{section}`");
    }
    let siblings = keys::names_in(section);
    if let Some(sibling) = nearest(name, siblings.iter().copied()) {
        return format!("did you mean `{sibling}`?");
    }
    if let Some(elsewhere) = KEYS.iter().find(|key| key.name() == name) {
        return format!("did you mean `{}`?", elsewhere.path);
    }
    let siblings = if siblings.is_empty() { keys::names_in("") } else { siblings };
    format!("expected one of {}", quoted(siblings))
}

/// What to write instead of an unknown variable; `name` is without the prefix.
fn suggest_variable(name: &str) -> String {
    let variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
    let names = variables.iter().filter_map(|variable| variable.strip_prefix(VARIABLE_PREFIX));
    let section_left_out = names.clone().find(|known| known.ends_with(&format!("_{name}")));
    match section_left_out.or_else(|| nearest(name, names)) {
        Some(known) => format!("did you mean `{VARIABLE_PREFIX}{known}`?"),
        None => "`sidecar config schema` lists all".into(),
    }
}
