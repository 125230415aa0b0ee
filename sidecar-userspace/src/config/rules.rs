//! How rules are written: `{name: web, action: allow, from: [{namespaces: [shop]}], ports: [80]}`.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::{
    Action, Rule, RulePlace, Source,
    document::{Node, Value},
    fault::Place,
    kind::{Choice, Kind, List, Number, PORT, Refusal, Switch},
    names::{Namespace, Principal},
    structured::{NotEmpty, Record, refuse},
    values::{Name, Network},
    words::given,
};

const ACTION: Choice<Action> = Choice(&[(Action::Allow.label(), Action::Allow), (Action::Deny.label(), Action::Deny)]);
const FROM: NotEmpty<SourceKind> = NotEmpty(List(SourceKind));
const PORTS: NotEmpty<Number<u16>> = NotEmpty(List(PORT));
const PRINCIPALS: NotEmpty<Principal> = NotEmpty(List(Principal));
const NAMESPACES: NotEmpty<Namespace> = NotEmpty(List(Namespace));
const CIDRS: NotEmpty<Network> = NotEmpty(List(Network));

/// The list of rules. No two have the same name.
pub(super) struct RulesKind;

impl Kind for RulesKind {
    type Value = Vec<Rule>;

    fn parse(&self, text: &str) -> Result<Vec<Rule>, String> {
        List(RuleKind).parse(text)
    }

    fn show(&self, value: &Vec<Rule>) -> Json {
        List(RuleKind).show(value)
    }

    fn schema(&self) -> Json {
        List(RuleKind).schema()
    }

    fn read(&self, node: &Node) -> Result<Vec<Rule>, Vec<Refusal>> {
        let rules = List(RuleKind).read(node)?;
        let places = match &node.value {
            Value::List(items) => items.as_slice(),
            _ => &[],
        };
        let mut seen: BTreeMap<&str, &Place> = BTreeMap::new();
        let mut refusals = Vec::new();
        for (rule, item) in rules.iter().zip(places) {
            if let Some(first) = seen.insert(&rule.name, &item.place) {
                let name = given(&rule.name);
                refusals.extend(refuse(&item.place, format!("{name} is the name of the rule at {first} already")));
            }
        }
        if refusals.is_empty() { Ok(rules) } else { Err(refusals) }
    }
}

struct RuleKind;

impl Kind for RuleKind {
    type Value = Rule;

    fn parse(&self, text: &str) -> Result<Rule, String> {
        Err(format!("expected a rule such as `{{name: web, action: allow, ports: [80]}}`, found {}", given(text)))
    }

    fn show(&self, value: &Rule) -> Json {
        let mut shown = Map::new();
        shown.insert("name".into(), Name.show(&value.name));
        shown.insert("action".into(), ACTION.show(&value.action));
        if value.dry_run {
            shown.insert("dry_run".into(), Switch.show(&value.dry_run));
        }
        show_some(&mut shown, "from", &FROM, &value.from);
        show_some(&mut shown, "ports", &PORTS, &value.ports);
        Json::Object(shown)
    }

    fn schema(&self) -> Json {
        json!({
            "type": "object", "additionalProperties": false, "required": ["name", "action"],
            "properties": {
                "name": Name.schema(), "action": ACTION.schema(), "dry_run": Switch.schema(),
                "from": FROM.schema(), "ports": PORTS.schema(),
            },
        })
    }

    fn read(&self, node: &Node) -> Result<Rule, Vec<Refusal>> {
        let mut record = Record::open(node, &["name", "action", "dry_run", "from", "ports"])?;
        let name = record.need("name", &Name);
        let action = record.need("action", &ACTION);
        let dry_run = record.get("dry_run", &Switch).unwrap_or(false);
        let from = record.get("from", &FROM).unwrap_or_default();
        let ports = record.get("ports", &PORTS).unwrap_or_default();
        let place = RulePlace::of(&node.place);
        let rule = name.zip(action).map(|(name, action)| Rule { name, action, dry_run, from, ports, place });
        record.finish(rule)
    }
}

struct SourceKind;

impl Kind for SourceKind {
    type Value = Source;

    fn parse(&self, text: &str) -> Result<Source, String> {
        Err(format!("expected a mapping of `principals`, `namespaces`, `cidrs`, found {}", given(text)))
    }

    fn show(&self, value: &Source) -> Json {
        let mut shown = Map::new();
        show_some(&mut shown, "principals", &PRINCIPALS, &value.principals);
        show_some(&mut shown, "namespaces", &NAMESPACES, &value.namespaces);
        show_some(&mut shown, "cidrs", &CIDRS, &value.cidrs);
        Json::Object(shown)
    }

    fn schema(&self) -> Json {
        json!({
            "type": "object", "additionalProperties": false, "minProperties": 1,
            "properties": {
                "principals": PRINCIPALS.schema(), "namespaces": NAMESPACES.schema(), "cidrs": CIDRS.schema(),
            },
        })
    }

    fn read(&self, node: &Node) -> Result<Source, Vec<Refusal>> {
        const FIELDS: [&str; 3] = ["principals", "namespaces", "cidrs"];
        let mut record = Record::open(node, &FIELDS)?;
        if !FIELDS.iter().any(|field| record.has(field)) {
            record.refuse("nothing is said about who; leave `from` out for anyone".into());
        }
        let principals = record.get("principals", &PRINCIPALS).unwrap_or_default();
        let namespaces = record.get("namespaces", &NAMESPACES).unwrap_or_default();
        let cidrs = record.get("cidrs", &CIDRS).unwrap_or_default();
        record.finish(Some(Source { principals, namespaces, cidrs }))
    }
}

fn show_some<K: Kind>(shown: &mut Map<String, Json>, name: &str, kind: &NotEmpty<K>, values: &Vec<K::Value>) {
    if !values.is_empty() {
        shown.insert(name.to_owned(), kind.show(values));
    }
}
