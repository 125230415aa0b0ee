//! The keys as JSON Schema, for editors and for people who generate configurations.

use serde_json::{Map, Value as Json, json};

use super::{
    Config,
    draft::Draft,
    keys::{self, Key},
};

/// Keys whose default depends on the machine; their documentation says how.
const COMPUTED: [&str; 1] = ["proxy.workers"];

/// The JSON Schema (draft 2020-12) of a configuration file.
pub fn schema() -> Json {
    let mut schema = section("", &mut Draft::new(Config::default()));
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Configuration of sidecar");
    schema
}

fn section(path: &str, defaults: &mut Draft) -> Json {
    let mut properties = Map::new();
    for name in keys::names_in(path) {
        let below = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let property = match keys::find(&below) {
            Some(key) => value(key, defaults),
            None => section(&below, defaults),
        };
        properties.insert(name.to_owned(), property);
    }
    let mut schema = json!({ "type": ["object", "null"], "additionalProperties": false, "properties": properties });
    if let Some(doc) = keys::section_doc(path) {
        schema["description"] = json!(doc);
    }
    schema
}

fn value(key: &Key, defaults: &mut Draft) -> Json {
    let mut schema = key.setting.schema();
    schema["description"] = json!(format!("{} Variable: `{}`.", key.doc, key.variable()));
    if !COMPUTED.contains(&key.path) {
        schema["default"] = key.setting.show(defaults);
    }
    schema
}
