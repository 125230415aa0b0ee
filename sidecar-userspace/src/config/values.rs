//! Kinds of values that mean something outside of the configuration: names, paths, networks, addresses, log filters.

use std::{net::SocketAddr, path::PathBuf};

use serde_json::{Value as Json, json};
use tracing_subscriber::EnvFilter;

use super::{
    Cidr, User,
    kind::{Kind, PORT},
    words::{did_you_mean, given, is_printable},
};

/// A name that ends up in labels and log lines.
pub(super) struct Name;

impl Kind for Name {
    type Value = String;

    fn parse(&self, text: &str) -> Result<String, String> {
        // Kubernetes' own bound for names; it also keeps metric labels from growing without limit.
        const MAX: usize = 253;
        if text.is_empty() || text.len() > MAX || !is_printable(text) {
            return Err(format!(
                "{} is not allowed; expected a name of 1 to {MAX} bytes without control characters",
                given(text)
            ));
        }
        Ok(text.to_owned())
    }

    fn show(&self, value: &String) -> Json {
        json!(value)
    }

    fn schema(&self) -> Json {
        json!({ "type": ["string", "number", "boolean"], "minLength": 1, "maxLength": 253 })
    }
}

/// An absolute path. Relative ones would depend on where the sidecar was started.
pub(super) struct AbsolutePath;

impl Kind for AbsolutePath {
    type Value = PathBuf;

    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        if !text.starts_with('/') || !is_printable(text) {
            return Err(format!("{} is not allowed; expected an absolute path", given(text)));
        }
        Ok(text.into())
    }

    fn show(&self, value: &PathBuf) -> Json {
        json!(value.to_string_lossy())
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "pattern": "^/" })
    }
}

/// A user and a group by number, `1337:1337`; one number is both.
pub(super) struct UserAndGroup;

impl Kind for UserAndGroup {
    type Value = User;

    fn parse(&self, text: &str) -> Result<User, String> {
        // The last number means "nobody's" to the kernel (setresuid(2)).
        let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        match (number(uid), number(gid)) {
            (Some(uid), Some(gid)) => Ok(User { uid, gid }),
            _ => Err(format!(
                "{} is not allowed; expected numbers of a user and a group, such as `1337:1337`",
                given(text)
            )),
        }
    }

    fn show(&self, value: &User) -> Json {
        json!(format!("{}:{}", value.uid, value.gid))
    }

    fn schema(&self) -> Json {
        json!({ "type": ["string", "integer"], "pattern": "^[0-9]+(:[0-9]+)?$", "minimum": 0 })
    }
}

/// A network.
pub(super) struct Network;

impl Kind for Network {
    type Value = Cidr;

    fn parse(&self, text: &str) -> Result<Cidr, String> {
        text.parse().map_err(|error| format!("{}: {error}", given(text)))
    }

    fn show(&self, value: &Cidr) -> Json {
        json!(value.to_string())
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$" })
    }
}

/// A port to listen on; `0`: none.
pub(super) struct PortOrNone;

impl Kind for PortOrNone {
    type Value = Option<u16>;

    fn parse(&self, text: &str) -> Result<Option<u16>, String> {
        match text {
            "0" => Ok(None),
            _ => PORT.parse(text).map(Some).map_err(|reason| format!("{reason}, or 0 for none")),
        }
    }

    fn show(&self, value: &Option<u16>) -> Json {
        json!(value.unwrap_or(0))
    }

    fn schema(&self) -> Json {
        json!({ "type": "integer", "minimum": 0, "maximum": u16::MAX })
    }
}

/// An address to listen on.
pub(super) struct Listen {
    /// Refuse anything that other hosts could reach.
    pub(super) loopback_only: bool,
}

impl Kind for Listen {
    type Value = SocketAddr;

    fn parse(&self, text: &str) -> Result<SocketAddr, String> {
        let example =
            if self.loopback_only { "`127.0.0.1:15000` or `[::1]:15000`" } else { "`0.0.0.0:15020` or `[::]:15020`" };
        let refuse = |why: &str| Err(format!("{} {why}, such as {example}", given(text)));
        match text.parse::<SocketAddr>() {
            Err(_) => refuse("is not allowed; expected an IP address and a port"),
            Ok(address) if address.port() == 0 => refuse("is not allowed; expected a port from 1 to 65535"),
            Ok(address) if self.loopback_only && !address.ip().to_canonical().is_loopback() => {
                refuse("can be reached from outside; expected a loopback address")
            }
            Ok(address) => Ok(address),
        }
    }

    fn show(&self, value: &SocketAddr) -> Json {
        json!(value.to_string())
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "pattern": "^([0-9.]+|\\[[0-9A-Fa-f.:%]+\\]):[0-9]{1,5}$" })
    }
}

/// A filter in `tracing`'s directive syntax.
pub(super) struct LogFilter;

impl Kind for LogFilter {
    type Value = String;

    fn parse(&self, text: &str) -> Result<String, String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        const EXPECTED: &str = "expected `off`, `error`, `warn`, `info`, `debug` or `trace`, or `target=level` pairs \
                                separated by commas";
        if text.is_empty() {
            return Err(format!("there is no filter; {EXPECTED}"));
        }
        // A word alone is a target to `EnvFilter`, which would make of `debgu` a filter that shows nothing.
        let mut words = text.split(',').map(str::trim).filter(|part| !part.contains(['=', '[', ']', '{', '}']));
        if let Some(word) = words.find(|word| !LEVELS.contains(&word.to_ascii_lowercase().as_str())) {
            return Err(format!("{} is no level; {EXPECTED}{}", given(word), did_you_mean(word, LEVELS)));
        }
        if !is_printable(text) || EnvFilter::builder().parse(text).is_err() {
            return Err(format!("{} is no filter; {EXPECTED}", given(text)));
        }
        Ok(text.to_owned())
    }

    fn show(&self, value: &String) -> Json {
        json!(value)
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "minLength": 1 })
    }
}
