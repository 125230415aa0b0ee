//! Kinds of values: how each is read, shown and described. `values` and `units` have more of them.

use std::{fmt, str::FromStr};

use serde_json::{Value as Json, json};

use super::{
    document::{Node, Value},
    fault::Place,
    words::{did_you_mean, given, quoted},
};

/// A value that a key does not allow: where it stands, what it is and what is allowed.
pub(super) struct Refusal {
    pub(super) place: Place,
    pub(super) reason: String,
}

/// A kind of value.
pub(super) trait Kind: Sync {
    /// What it is once it has been read.
    type Value;

    /// Reads one scalar; the error tells what was given and what is allowed.
    fn parse(&self, text: &str) -> Result<Self::Value, String>;

    /// The value as it is written in a file.
    fn show(&self, value: &Self::Value) -> Json;

    /// The JSON Schema of what [`Kind::read`] accepts.
    fn schema(&self) -> Json;

    /// Reads what was given. Only lists have more than one refusal.
    fn read(&self, node: &Node) -> Result<Self::Value, Vec<Refusal>> {
        let parsed = match &node.value {
            Value::Scalar(text) | Value::Line(text) => self.parse(text.trim()),
            Value::Null => Err("there is no value; leave the whole key out for its default".into()),
            Value::List(_) | Value::Map(_) => Err(format!("expected a single value, found {}", node.value.kind())),
        };
        parsed.map_err(|reason| vec![Refusal { place: node.place.clone(), reason }])
    }
}

/// `true` or `false`.
pub(super) struct Switch;

impl Kind for Switch {
    type Value = bool;

    fn parse(&self, text: &str) -> Result<bool, String> {
        text.parse().map_err(|_| {
            let meant = match text.to_ascii_lowercase().as_str() {
                "yes" | "on" | "1" | "true" => "; did you mean `true`?",
                "no" | "off" | "0" | "false" => "; did you mean `false`?",
                _ => "",
            };
            format!("{} is not allowed; expected `true` or `false`{meant}", given(text))
        })
    }

    fn show(&self, value: &bool) -> Json {
        json!(value)
    }

    fn schema(&self) -> Json {
        json!({ "type": "boolean" })
    }
}

/// A whole number within limits.
pub(super) struct Number<T> {
    pub(super) min: T,
    pub(super) max: T,
}

impl<T> Kind for Number<T>
where
    T: FromStr + PartialOrd + fmt::Display + Copy + Into<Json> + Sync,
{
    type Value = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        let number = text.parse().ok().filter(|number| (self.min..=self.max).contains(number));
        number.ok_or_else(|| {
            format!("{} is not allowed; expected a whole number from {} to {}", given(text), self.min, self.max)
        })
    }

    fn show(&self, value: &T) -> Json {
        (*value).into()
    }

    fn schema(&self) -> Json {
        let (min, max): (Json, Json) = (self.min.into(), self.max.into());
        json!({ "type": "integer", "minimum": min, "maximum": max })
    }
}

/// A TCP port.
pub(super) const PORT: Number<u16> = Number { min: 1, max: u16::MAX };

/// One of a few words.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq + Sync> Kind for Choice<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        if let Some((_, value)) = self.0.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let words = self.0.iter().map(|(word, _)| *word);
        let meant = did_you_mean(text, words.clone());
        Err(format!("{} is not allowed; expected one of {}{meant}", given(text), quoted(words)))
    }

    fn show(&self, value: &T) -> Json {
        self.0.iter().find(|(_, known)| known == value).map_or(Json::Null, |(word, _)| json!(word))
    }

    fn schema(&self) -> Json {
        json!({ "enum": self.0.iter().map(|(word, _)| *word).collect::<Vec<_>>() })
    }
}

/// A value that may be absent: `null` in a file, the empty text elsewhere.
pub(super) struct Optional<K>(pub(super) K);

impl<K: Kind> Kind for Optional<K> {
    type Value = Option<K::Value>;

    fn parse(&self, text: &str) -> Result<Self::Value, String> {
        self.0.parse(text).map(Some)
    }

    fn show(&self, value: &Self::Value) -> Json {
        value.as_ref().map_or(Json::Null, |value| self.0.show(value))
    }

    fn schema(&self) -> Json {
        json!({ "anyOf": [self.0.schema(), { "type": "null" }] })
    }

    fn read(&self, node: &Node) -> Result<Self::Value, Vec<Refusal>> {
        match &node.value {
            Value::Null => Ok(None),
            Value::Line(text) if text.is_empty() => Ok(None),
            _ => self.0.read(node).map(Some),
        }
    }
}

/// Any number of values: a list in a file, separated by commas elsewhere.
pub(super) struct List<K>(pub(super) K);

impl<K: Kind> Kind for List<K> {
    type Value = Vec<K::Value>;

    fn parse(&self, text: &str) -> Result<Self::Value, String> {
        // `config show` prints `[80, 443]`; what it prints can be given back.
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if inner.trim().is_empty() {
            return Ok(Vec::new());
        }
        inner.split(',').map(|item| self.0.parse(item.trim().trim_matches('"'))).collect()
    }

    fn show(&self, value: &Self::Value) -> Json {
        value.iter().map(|item| self.0.show(item)).collect()
    }

    fn schema(&self) -> Json {
        json!({ "type": "array", "items": self.0.schema() })
    }

    fn read(&self, node: &Node) -> Result<Self::Value, Vec<Refusal>> {
        let refuse = |reason| vec![Refusal { place: node.place.clone(), reason }];
        let items = match &node.value {
            Value::List(items) => items,
            Value::Line(text) => return self.parse(text.trim()).map_err(refuse),
            Value::Scalar(text) => return Err(refuse(format!("expected a list, found {}", given(text)))),
            Value::Null => return Err(refuse("there is no value; write `[]` for an empty list".into())),
            Value::Map(_) => return Err(refuse("expected a list, found a mapping".into())),
        };
        let mut values = Vec::with_capacity(items.len());
        let mut refusals = Vec::new();
        for item in items {
            match self.0.read(item) {
                Ok(value) => values.push(value),
                Err(wrong) => refusals.extend(wrong),
            }
        }
        if refusals.is_empty() { Ok(values) } else { Err(refusals) }
    }
}
