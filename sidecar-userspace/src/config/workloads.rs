//! How known destinations are written: `{addresses: [10.0.0.7/32], identity: spiffe://…, transport: hbone}`.

use serde_json::{Map, Value as Json, json};

use super::{
    Cidr, Transport, Workload,
    document::{Node, Value},
    fault::Place,
    kind::{Choice, Kind, List, Refusal},
    names::Id,
    structured::{NotEmpty, Record, refuse},
    values::Network,
    words::given,
};

const ADDRESSES: NotEmpty<Network> = NotEmpty(List(Network));
const TRANSPORT: Choice<Transport> =
    Choice(&[("native", Transport::Native), ("hbone", Transport::Hbone), ("plaintext", Transport::Plaintext)]);

/// The list of known destinations. No network may stand in it twice.
pub(super) struct WorkloadsKind;

impl Kind for WorkloadsKind {
    type Value = Vec<Workload>;

    fn parse(&self, text: &str) -> Result<Vec<Workload>, String> {
        List(WorkloadKind).parse(text)
    }

    fn show(&self, value: &Vec<Workload>) -> Json {
        List(WorkloadKind).show(value)
    }

    fn schema(&self) -> Json {
        List(WorkloadKind).schema()
    }

    fn read(&self, node: &Node) -> Result<Vec<Workload>, Vec<Refusal>> {
        let workloads = List(WorkloadKind).read(node)?;
        let places: Vec<&Place> = match &node.value {
            Value::List(items) => items.iter().map(|item| &item.place).collect(),
            _ => Vec::new(),
        };
        let mut seen: Vec<(Cidr, &Place)> = Vec::new();
        let mut refusals = Vec::new();
        for (workload, place) in workloads.iter().zip(places) {
            for cidr in &workload.addresses {
                match seen.iter().find(|(known, _)| known == cidr) {
                    Some((_, first)) => {
                        let network = given(&cidr.to_string());
                        refusals.extend(refuse(place, format!("{network} belongs to the workload at {first} already")));
                    }
                    None => seen.push((*cidr, place)),
                }
            }
        }
        if refusals.is_empty() { Ok(workloads) } else { Err(refusals) }
    }
}

struct WorkloadKind;

impl Kind for WorkloadKind {
    type Value = Workload;

    fn parse(&self, text: &str) -> Result<Workload, String> {
        Err(format!("expected a mapping of `addresses`, `identity`, `transport`, found {}", given(text)))
    }

    fn show(&self, value: &Workload) -> Json {
        let mut shown = Map::new();
        shown.insert("addresses".into(), ADDRESSES.show(&value.addresses));
        shown.extend(value.identity.iter().map(|id| ("identity".into(), Id.show(id))));
        shown.extend(value.transport.iter().map(|transport| ("transport".into(), TRANSPORT.show(transport))));
        Json::Object(shown)
    }

    fn schema(&self) -> Json {
        json!({
            "type": "object", "additionalProperties": false, "required": ["addresses"],
            "properties": {
                "addresses": ADDRESSES.schema(), "identity": Id.schema(), "transport": TRANSPORT.schema(),
            },
        })
    }

    fn read(&self, node: &Node) -> Result<Workload, Vec<Refusal>> {
        let mut record = Record::open(node, &["addresses", "identity", "transport"])?;
        let addresses = record.need("addresses", &ADDRESSES);
        let identity = record.get("identity", &Id);
        let transport = record.get("transport", &TRANSPORT);
        if !record.has("identity") && !record.has("transport") {
            record.refuse("nothing is said about these addresses; set `identity`, `transport` or both".into());
        }
        if record.has("identity") && transport == Some(Transport::Plaintext) {
            record.refuse("`transport: plaintext` proves no identity; leave `identity` out".into());
        }
        record.finish(addresses.map(|addresses| Workload { addresses, identity, transport }))
    }
}
