//! Kinds of values that name workloads and the sockets that tell of them.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::{
    kind::Kind,
    words::{given, is_printable},
};
use crate::id::SpiffeId;

/// The identity of a workload.
pub(super) struct Id;

impl Kind for Id {
    type Value = SpiffeId;

    fn parse(&self, text: &str) -> Result<SpiffeId, String> {
        text.parse().map_err(|error| format!("{} is no identity: {error}", given(text)))
    }

    fn show(&self, value: &SpiffeId) -> Json {
        json!(value.as_str())
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "pattern": "^spiffe://[a-z0-9._-]+/[A-Za-z0-9._/-]+$" })
    }
}

/// A unix socket as the SPIFFE Workload Endpoint standard (§4) writes it: `unix:///path`.
pub(super) struct UnixUri;

impl Kind for UnixUri {
    type Value = PathBuf;

    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        const EXPECTED: &str = "expected a unix socket, such as `unix:///run/spire/agent.sock`";
        let path = text.strip_prefix("unix://").filter(|path| path.starts_with('/') && is_printable(path));
        path.map(PathBuf::from).ok_or_else(|| {
            let meant = if text.starts_with('/') { format!("; did you mean `unix://{text}`?") } else { String::new() };
            format!("{} is not allowed; {EXPECTED}{}", given(text), if is_printable(text) { &meant } else { "" })
        })
    }

    fn show(&self, value: &PathBuf) -> Json {
        json!(format!("unix://{}", value.display()))
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "pattern": "^unix:///" })
    }
}

/// Identities as a rule names them: a whole one, or one with `*` at either end.
pub(super) struct Principal;

impl Kind for Principal {
    type Value = String;

    fn parse(&self, text: &str) -> Result<String, String> {
        let refuse = |why: &str| Err(format!("{} is not allowed; {why}", given(text)));
        let open_start = text.starts_with('*');
        let middle = text.strip_prefix('*').unwrap_or(text);
        let open_end = middle.ends_with('*');
        let middle = middle.strip_suffix('*').unwrap_or(middle);
        if !open_start && !open_end {
            return Id.parse(text).map(|id| id.as_str().to_owned());
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_/:".contains(&byte);
        if middle.contains('*') {
            return refuse("`*` may stand at the beginning and at the end only");
        }
        if open_start && open_end && middle.is_empty() {
            return refuse("did you mean `*`?");
        }
        if text.len() > 2048 || !middle.bytes().all(allowed) {
            return refuse("an identity holds letters, digits, `.`, `-`, `_` and `/` only, 2048 of them at most");
        }
        if !open_start && !middle.starts_with("spiffe://") && !"spiffe://".starts_with(middle) {
            return refuse("an identity begins with `spiffe://`, and this matches none");
        }
        Ok(text.to_owned())
    }

    fn show(&self, value: &String) -> Json {
        json!(value)
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "pattern": "^[*]?[A-Za-z0-9._/:-]*[*]?$", "minLength": 1 })
    }
}

/// A Kubernetes namespace within an identity.
pub(super) struct Namespace;

impl Kind for Namespace {
    type Value = String;

    fn parse(&self, text: &str) -> Result<String, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if text.is_empty() || text.len() > 253 || !text.bytes().all(allowed) {
            return Err(format!("{} is not allowed; expected the name of a namespace, without `*`", given(text)));
        }
        Ok(text.to_owned())
    }

    fn show(&self, value: &String) -> Json {
        json!(value)
    }

    fn schema(&self) -> Json {
        json!({ "type": ["string", "number"], "pattern": "^[A-Za-z0-9._-]{1,253}$" })
    }
}
