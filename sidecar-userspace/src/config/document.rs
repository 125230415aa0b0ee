//! From YAML text to a tree in which every value knows its place.
//!
//! A tree instead of derived structs, because serde stops at the first unknown key or bad value and we report all.

use std::{fmt, path::Path, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{
    DuplicateKeyPolicy, Location, MessageFormatter, NonFiniteFloatPolicy, Spanned, UserMessageFormatter,
};

use super::{
    fault::{Fault, Place, Problem},
    words::one_line,
};

/// Levels of nesting; the deepest value, a list in a source of a rule, stands on the seventh.
const MAX_DEPTH: usize = 16;
/// Values in one document; far above any list of networks that is written by hand.
const MAX_NODES: usize = 20_000;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What was given. Scalars are text until the key they belong to reads them: only it knows what `010` or `on` means.
#[derive(Debug)]
pub(super) enum Value {
    /// A key without a value.
    Null,
    /// One value of a file.
    Scalar(String),
    /// The text of an environment variable or a flag; a list is separated by commas.
    Line(String),
    /// A list of a file.
    List(Vec<Node>),
    /// A mapping of a file: key, the key's place, value.
    Map(Vec<(String, Place, Node)>),
}

impl Value {
    /// How a person would call it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "no value",
            Self::Scalar(_) | Self::Line(_) => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Parses one YAML document. An empty one is `Null`.
pub(super) fn parse(file: &Arc<Path>, text: &str) -> Result<Node, Fault> {
    let origin = Origin::File(file);
    read(origin, text.strip_prefix('\u{feff}').unwrap_or(text))
        .map_err(|(place, reason)| Fault { place, problem: Problem::Syntax(reason) })
}

/// Parses the YAML that an environment variable or a flag has for a value; all of it stands at `place`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse_line(place: &Place, text: &str) -> Result<Node, String> {
    read(Origin::Line(place), text).map_err(|(_, reason)| reason)
}

fn read(origin: Origin<'_>, text: &str) -> Result<Node, (Place, String)> {
    let budget = serde_saphyr::budget! {
        max_depth: MAX_DEPTH, flow_nesting_limit: MAX_DEPTH, max_nodes: MAX_NODES, max_events: 4 * MAX_NODES,
        max_documents: 2,
    };
    let options = serde_saphyr::options! {
        budget: budget,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
        with_snippet: false,
    };
    let tree: Option<Spanned<Yaml>> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = origin.at(error.location().unwrap_or(Location::UNKNOWN));
        (place, one_line(&UserMessageFormatter.format_message(&error)))
    })?;
    Ok(tree.map_or_else(
        || Node { place: origin.at(Location::UNKNOWN), value: Value::Null },
        |tree| Source { origin, text }.node(tree),
    ))
}

/// Where a text was found.
#[derive(Clone, Copy)]
enum Origin<'a> {
    File(&'a Arc<Path>),
    /// In a variable or a flag, in which nobody counts lines.
    Line(&'a Place),
}

impl Origin<'_> {
    fn at(self, location: Location) -> Place {
        match self {
            Self::Line(place) => place.clone(),
            Self::File(file) if location == Location::UNKNOWN => Place::File(file.clone()),
            Self::File(file) => Place::Line { file: file.clone(), line: location.line(), column: location.column() },
        }
    }
}

/// What the tree was parsed from.
struct Source<'a> {
    origin: Origin<'a>,
    text: &'a str,
}

impl Source<'_> {
    fn node(&self, tree: Spanned<Yaml>) -> Node {
        let value = match tree.value {
            Yaml::Null => Value::Null,
            Yaml::Text(text) => Value::Scalar(text),
            Yaml::Typed(shown) => Value::Scalar(self.written(tree.defined).unwrap_or(shown)),
            Yaml::List(items) => Value::List(items.into_iter().map(|item| self.node(item)).collect()),
            Yaml::Map(entries) => {
                let entry =
                    |(key, value): (Spanned<String>, _)| (key.value, self.origin.at(key.referenced), self.node(value));
                Value::Map(entries.into_iter().map(entry).collect())
            }
        };
        Node { place: self.origin.at(tree.referenced), value }
    }

    /// The text of a scalar that YAML took for a number or a boolean: a workload named `1.10` is not named `1.1`.
    fn written(&self, location: Location) -> Option<String> {
        let start = usize::try_from(location.span().byte_offset()?).ok()?;
        let length = usize::try_from(location.span().byte_len()?).ok()?;
        let text = self.text.get(start..start.checked_add(length)?)?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// YAML as serde sees it.
enum Yaml {
    Null,
    Text(String),
    /// A number or boolean, printed again.
    Typed(String),
    List(Vec<Spanned<Yaml>>),
    Map(Vec<(Spanned<String>, Spanned<Yaml>)>),
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar, a list or a mapping")
    }

    fn visit_unit<E: Error>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Typed(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Yaml, E> {
        Ok(Yaml::Typed(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Yaml, E> {
        Ok(Yaml::Typed(value.to_string()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Yaml, E> {
        Ok(Yaml::Typed(value.to_string()))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Yaml, E> {
        Ok(Yaml::Typed(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Yaml, E> {
        Ok(Yaml::Typed(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Yaml, E> {
        Ok(Yaml::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Yaml::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Yaml::Map(entries))
    }
}
