//! What a store says about itself, on one line that `ls -l` shows.

use std::{
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
};

use sidecar_common::layout::LAYOUT;

use super::super::programs::Subflows;

/// The first word.
const MAGIC: &str = "sidecar";

/// What a complete store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::redirect) struct Marker {
    /// The layout of its maps.
    pub(in crate::redirect) layout: u32,
    /// What the programs were loaded from.
    pub(in crate::redirect) object: u64,
    /// What the programs took for the port of the inbound listener.
    pub(in crate::redirect) inbound_port: u16,
    /// The programs tell MPTCP from TCP.
    pub(in crate::redirect) tells_subflows: bool,
    /// `sidecar init` made it: it outlives every sidecar.
    pub(in crate::redirect) by_init: bool,
    /// The process that wrote this.
    pub(in crate::redirect) owner: u32,
    /// The version of its binary.
    pub(in crate::redirect) version: String,
}

impl Marker {
    /// The marker of this process.
    pub(in crate::redirect) fn new(object: &[u8], inbound_port: u16, subflows: &Subflows, by_init: bool) -> Self {
        Self {
            layout: LAYOUT,
            object: fingerprint(object),
            inbound_port,
            tells_subflows: *subflows == Subflows::Told,
            by_init,
            owner: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// `None`: it is no marker, or of a version that wrote other words.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next() != Some(MAGIC) {
            return None;
        }
        let words: HashMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
        let word = |name| words.get(name).copied();
        Some(Self {
            layout: word("layout")?.parse().ok()?,
            object: u64::from_str_radix(word("object")?, 16).ok()?,
            inbound_port: word("inbound")?.parse().ok()?,
            tells_subflows: word("mptcp")? == "told",
            by_init: word("by")? == "init",
            owner: word("pid")?.parse().ok()?,
            version: word("version")?.to_owned(),
        })
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layout, object, inbound_port, tells_subflows, by_init, owner, version } = self;
        let mptcp = if *tells_subflows { "told" } else { "taken" };
        let by = if *by_init { "init" } else { "run" };
        write!(
            f,
            "{MAGIC} layout={layout} object={object:016x} inbound={inbound_port} mptcp={mptcp} by={by} pid={owner} version={version}"
        )
    }
}

/// Tells one object from another. Only one binary compares its own: the function may be another in the next.
pub(in crate::redirect) fn fingerprint(object: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_as_it_was_written() {
        for (subflows, by_init) in [(Subflows::Told, true), (Subflows::TakenForTcp { reason: String::new() }, false)] {
            let marker = Marker::new(b"object", 15006, &subflows, by_init);
            assert_eq!(Marker::parse(&marker.to_string()), Some(marker));
        }
    }

    #[test]
    fn other_words_are_no_marker() {
        let good = Marker::new(b"object", 15006, &Subflows::Told, true).to_string();
        for text in ["", "sidecar", "other layout=1", &good.replace("layout=", "layout=x"), &good.replace("pid", "p")] {
            assert_eq!(Marker::parse(text), None, "{text}");
        }
    }
}
