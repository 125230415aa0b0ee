//! The effective configuration, printed. What is printed can be read again.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::{
    draft::Draft,
    keys::{self, KEYS},
    load::Loaded,
};

impl Loaded {
    /// The effective values as YAML, every key included.
    pub fn to_yaml(&self) -> String {
        self.yaml(false)
    }

    /// The same, with a comment behind each value that says where it came from.
    pub fn to_yaml_with_origins(&self) -> String {
        self.yaml(true)
    }

    /// The effective values as JSON.
    pub fn to_json(&self) -> Json {
        let mut draft = Draft::new(self.config.clone());
        let mut root = Map::new();
        for key in KEYS {
            insert(&mut root, key.path, key.setting.show(&mut draft));
        }
        Json::Object(root)
    }

    /// For each key's path its `value` and its `origin`.
    pub fn to_json_with_origins(&self) -> Json {
        let mut draft = Draft::new(self.config.clone());
        let entry = |key: &keys::Key| {
            let value = key.setting.show(&mut draft);
            (key.path.to_owned(), json!({ "value": value, "origin": self.origin(key.path).to_string() }))
        };
        Json::Object(KEYS.iter().map(entry).collect())
    }

    /// The keys whose values are not those of `other`, in the order of the document.
    pub fn changed(&self, other: &Self) -> Vec<&'static str> {
        let (mut ours, mut theirs) = (Draft::new(self.config.clone()), Draft::new(other.config.clone()));
        let differs = |key: &&keys::Key| key.setting.show(&mut ours) != key.setting.show(&mut theirs);
        KEYS.iter().filter(differs).map(|key| key.path).collect()
    }

    fn yaml(&self, origins: bool) -> String {
        let mut draft = Draft::new(self.config.clone());
        let mut out = String::new();
        let mut open: Vec<&str> = Vec::new();
        for key in KEYS {
            let mut sections: Vec<&str> = key.path.split('.').collect();
            let name = sections.pop().unwrap_or_default();
            let shared = open.iter().zip(&sections).take_while(|(a, b)| a == b).count();
            for (depth, section) in sections.iter().enumerate().skip(shared) {
                let _ = writeln!(out, "{:1$}{section}:", "", 2 * depth);
            }
            let line = format!("{:1$}{name}: {2}", "", 2 * sections.len(), yaml_value(&key.setting.show(&mut draft)));
            let _ = match origins {
                true => writeln!(out, "{line:<48} # {}", self.origin(key.path)),
                false => writeln!(out, "{line}"),
            };
            open = sections;
        }
        out
    }
}

fn insert(root: &mut Map<String, Json>, path: &str, value: Json) {
    match path.split_once('.') {
        None => drop(root.insert(path.to_owned(), value)),
        Some((section, rest)) => {
            let below = root.entry(section).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(below) = below {
                insert(below, rest, value);
            }
        }
    }
}

/// JSON is YAML, so only the strings that read better without quotes differ.
fn yaml_value(value: &Json) -> String {
    match value {
        Json::String(text) if is_plain(text) => text.clone(),
        Json::Array(items) => format!("[{}]", items.iter().map(yaml_value).collect::<Vec<_>>().join(", ")),
        Json::Object(entries) => {
            let entry = |(key, value): (&String, &Json)| format!("{}: {}", yaml_key(key), yaml_value(value));
            format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// A key is read as the text that stands there, so that a number needs no quotes.
fn yaml_key(key: &str) -> String {
    let number = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit());
    if number { key.to_owned() } else { yaml_value(&Json::String(key.to_owned())) }
}

/// Whether every YAML reader takes the bare text for a string.
fn is_plain(text: &str) -> bool {
    const RESERVED: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "y", "n", "off"];
    let harmless = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let number = text.parse::<f64>().is_ok() || ["0x", "0o", "0b"].iter().any(|radix| text.starts_with(radix));
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.chars().all(harmless)
        && !number
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str())
}
