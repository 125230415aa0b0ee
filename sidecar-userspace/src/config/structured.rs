//! Kinds of values that consist of others: mappings whose keys are values, and records with named fields.

use serde_json::{Value as Json, json};

use super::{
    document::{self, Node, Value},
    fault::Place,
    kind::{Kind, Refusal},
    words::{did_you_mean, given, quoted},
};

/// A value that a variable or a flag gives as YAML on one line, the way `config show` prints it.
pub(super) struct Structured<K>(pub(super) K);

impl<K: Kind> Kind for Structured<K> {
    type Value = K::Value;

    fn parse(&self, text: &str) -> Result<K::Value, String> {
        self.0.parse(text)
    }

    fn show(&self, value: &K::Value) -> Json {
        self.0.show(value)
    }

    fn schema(&self) -> Json {
        self.0.schema()
    }

    fn read(&self, node: &Node) -> Result<K::Value, Vec<Refusal>> {
        let Value::Line(text) = &node.value else { return self.0.read(node) };
        let parsed = document::parse_line(&node.place, text);
        let parsed = parsed.map_err(|reason| refuse(&node.place, format!("not valid YAML: {reason}")))?;
        self.0.read(&parsed)
    }
}

/// A mapping from one kind of value to another, in the order of its keys.
pub(super) struct Keyed<K, V>(pub(super) K, pub(super) V);

impl<K, V> Kind for Keyed<K, V>
where
    K: Kind<Value: Ord>,
    V: Kind,
{
    type Value = Vec<(K::Value, V::Value)>;

    fn parse(&self, text: &str) -> Result<Self::Value, String> {
        Err(format!("expected a mapping, found {}", given(text)))
    }

    fn show(&self, value: &Self::Value) -> Json {
        let text = |key: Json| key.as_str().map_or_else(|| key.to_string(), str::to_owned);
        Json::Object(value.iter().map(|(key, value)| (text(self.0.show(key)), self.1.show(value))).collect())
    }

    fn schema(&self) -> Json {
        // Keys of a JSON object are text, of whatever kind their value is.
        json!({ "type": "object", "additionalProperties": self.1.schema() })
    }

    fn read(&self, node: &Node) -> Result<Self::Value, Vec<Refusal>> {
        let entries = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => {
                return Err(refuse(&node.place, "there is no value; write `{}` for an empty mapping".into()));
            }
            other => return Err(refuse(&node.place, format!("expected a mapping, found {}", other.kind()))),
        };
        let mut read: Vec<(K::Value, V::Value)> = Vec::with_capacity(entries.len());
        let mut refusals = Vec::new();
        for (text, place, node) in entries {
            match (self.0.parse(text.trim()), self.1.read(node)) {
                (Ok(key), Ok(value)) => match read.binary_search_by(|(known, _)| known.cmp(&key)) {
                    Ok(_) => refusals.extend(refuse(place, format!("{} is given twice", given(text)))),
                    Err(at) => read.insert(at, (key, value)),
                },
                (key, value) => {
                    refusals.extend(key.err().into_iter().flat_map(|reason| refuse(place, reason)));
                    refusals.extend(value.err().into_iter().flatten());
                }
            }
        }
        if refusals.is_empty() { Ok(read) } else { Err(refusals) }
    }
}

/// A mapping with named fields, which are taken one by one.
pub(super) struct Record<'a> {
    place: &'a Place,
    entries: &'a [(String, Place, Node)],
    refusals: Vec<Refusal>,
}

impl<'a> Record<'a> {
    /// Opens what must be a mapping of some of `fields`.
    pub(super) fn open(node: &'a Node, fields: &[&'static str]) -> Result<Self, Vec<Refusal>> {
        let Value::Map(entries) = &node.value else {
            let expected =
                format!("expected a mapping of {}, found {}", quoted(fields.iter().copied()), node.value.kind());
            return Err(refuse(&node.place, expected));
        };
        let mut refusals = Vec::new();
        for (index, (name, place, _)) in entries.iter().enumerate() {
            if !fields.contains(&name.as_str()) {
                let meant = did_you_mean(name, fields.iter().copied());
                let known = if meant.is_empty() {
                    format!("; expected one of {}", quoted(fields.iter().copied()))
                } else {
                    meant
                };
                refusals.extend(refuse(place, format!("unknown field {}{known}", given(name))));
            } else if let Some((_, first, _)) = entries[..index].iter().find(|(earlier, ..)| earlier == name) {
                refusals
                    .extend(refuse(place, format!("duplicate field {}; it was given before at {first}", given(name))));
            }
        }
        Ok(Self { place: &node.place, entries, refusals })
    }

    /// The value of a field that may be left out.
    pub(super) fn get<K: Kind>(&mut self, name: &str, kind: &K) -> Option<K::Value> {
        let (_, _, node) = self.entries.iter().find(|(given, ..)| given == name)?;
        match kind.read(node) {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.refusals.extend(
                    wrong.into_iter().map(|refusal| Refusal {
                        place: refusal.place,
                        reason: format!("`{name}`: {}", refusal.reason),
                    }),
                );
                None
            }
        }
    }

    /// The value of a field that must be there. `None` means that it was refused.
    pub(super) fn need<K: Kind>(&mut self, name: &str, kind: &K) -> Option<K::Value> {
        if !self.has(name) {
            self.refuse(format!("`{name}` is missing"));
        }
        self.get(name, kind)
    }

    /// Whether the field was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|(given, ..)| given == name)
    }

    /// Refuses the record as a whole.
    pub(super) fn refuse(&mut self, reason: String) {
        self.refusals.extend(refuse(self.place, reason));
    }

    /// The record that was made of the fields, unless something was refused.
    pub(super) fn finish<T>(self, record: Option<T>) -> Result<T, Vec<Refusal>> {
        record.filter(|_| self.refusals.is_empty()).ok_or(self.refusals)
    }
}

/// A list that says nothing when it is empty: whoever wrote `[]` meant "nobody" as likely as "anybody".
pub(super) struct NotEmpty<K>(pub(super) super::kind::List<K>);

impl<K: Kind> Kind for NotEmpty<K> {
    type Value = Vec<K::Value>;

    fn parse(&self, text: &str) -> Result<Self::Value, String> {
        self.0.parse(text)
    }

    fn show(&self, value: &Self::Value) -> Json {
        self.0.show(value)
    }

    fn schema(&self) -> Json {
        let mut schema = self.0.schema();
        schema["minItems"] = json!(1);
        schema
    }

    fn read(&self, node: &Node) -> Result<Self::Value, Vec<Refusal>> {
        let items = self.0.read(node)?;
        if items.is_empty() {
            return Err(refuse(
                &node.place,
                "the list is empty; name at least one, or leave it out where anything goes".into(),
            ));
        }
        Ok(items)
    }
}

/// One refusal.
pub(super) fn refuse(place: &Place, reason: String) -> Vec<Refusal> {
    vec![Refusal { place: place.clone(), reason }]
}
