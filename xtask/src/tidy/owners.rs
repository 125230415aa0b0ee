//! Things that one place owns: a crate, a part of the standard library, a kind of system call.

use super::{Violation, files::Tree};

/// Something only some places may use.
struct Owned {
    /// The rule, as a person would say it.
    rule: &'static str,
    /// Where it applies.
    within: &'static str,
    /// Files, or folders ending in `/`, that own it.
    owners: &'static [&'static str],
    /// What its use looks like.
    signs: Signs,
}

enum Signs {
    /// A path that starts with one of these crates.
    Crate(&'static [&'static str]),
    /// One of these names, whole.
    Name(&'static [&'static str]),
}

const USERSPACE: &str = "sidecar-userspace/src/";

const OWNED: &[Owned] = &[
    Owned {
        rule: "only redirect/ imports aya",
        within: USERSPACE,
        owners: &["redirect.rs", "redirect/"],
        signs: Signs::Crate(&["aya", "aya_log", "aya_obj"]),
    },
    Owned {
        rule: "only tls/, identity/, native/ and hbone/ import rustls",
        within: USERSPACE,
        owners: &["tls.rs", "tls/", "identity.rs", "identity/", "native.rs", "native/", "hbone.rs", "hbone/"],
        signs: Signs::Crate(&["rustls", "tokio_rustls", "rustls_pki_types", "webpki"]),
    },
    Owned {
        rule: "only config/ reads the environment",
        within: USERSPACE,
        owners: &["config.rs", "config/"],
        signs: Signs::Name(&["env::var", "env::var_os", "env::vars", "env::vars_os"]),
    },
    Owned {
        rule: "only net.rs sets socket options",
        within: USERSPACE,
        owners: &["net.rs", "net/"],
        signs: Signs::Name(&[
            "setsockopt",
            "SockRef",
            "bind_device",
            "set_cork",
            "set_freebind",
            "set_freebind_v4",
            "set_freebind_v6",
            "set_ip_transparent",
            "set_ip_transparent_v4",
            "set_keepalive",
            "set_linger",
            "set_mark",
            "set_nodelay",
            "set_only_v6",
            "set_quickack",
            "set_recv_buffer_size",
            "set_reuse_address",
            "set_reuse_port",
            "set_reuseaddr",
            "set_reuseport",
            "set_send_buffer_size",
            "set_tcp_congestion",
            "set_tcp_keepalive",
            "set_tcp_nodelay",
            "set_tcp_user_timeout",
            "set_zero_linger",
        ]),
    },
    Owned {
        rule: "pod.rs holds the only unsafe code of sidecar-common",
        within: "sidecar-common/src/",
        owners: &["pod.rs"],
        signs: Signs::Name(&["unsafe"]),
    },
    Owned {
        rule: "sidecar-common knows no operating system",
        within: "sidecar-common/src/",
        owners: &["pod.rs"],
        signs: Signs::Crate(&["std", "libc", "nix", "aya", "aya_ebpf"]),
    },
];

/// Uses of what another place owns.
pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for owned in OWNED {
        for source in &tree.sources {
            let Some(file) = source.path.strip_prefix(owned.within) else { continue };
            if owned.owners.iter().any(|owner| file == *owner || (owner.ends_with('/') && file.starts_with(owner))) {
                continue;
            }
            for (line, _) in source.product().filter(|(_, code)| owned.signs.in_line(code)) {
                violations.push(Violation {
                    file: source.path.clone(),
                    line,
                    rule: owned.rule.into(),
                    fix: format!("move it to {}{}", owned.within, owned.owners[0]),
                });
            }
        }
    }
    violations
}

impl Signs {
    fn in_line(&self, code: &str) -> bool {
        match self {
            Self::Crate(names) => names.iter().any(|name| uses_crate(code, name)),
            Self::Name(names) => names.iter().any(|name| whole(code, name).next().is_some()),
        }
    }
}

/// `aya::x`, `use aya;`, `use aya as y`; not `crate::aya::x` nor a field named aya.
fn uses_crate(code: &str, name: &str) -> bool {
    whole(code, name).any(|at| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        let rooted = before.trim_end();
        let is_root = !rooted.ends_with("::") || rooted == "use ::";
        is_root && (after.starts_with("::") || rooted.ends_with("use") || rooted == "use ::")
    })
}

/// Where `name` stands as a whole name.
fn whole<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let alone = move |at: &usize| !code[..*at].ends_with(is_name) && !code[at + name.len()..].starts_with(is_name);
    code.match_indices(name).map(|(at, _)| at).filter(alone)
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(path: &str, text: &str) -> Vec<(usize, String)> {
        let mut tree = Tree::default();
        tree.add(path, text.to_owned());
        check(&tree).into_iter().map(|violation| (violation.line, violation.rule)).collect()
    }

    #[test]
    fn each_owned_thing_is_found_outside_its_owner_and_allowed_inside() {
        let cases = [
            ("use aya::Ebpf;", "only redirect/ imports aya", "redirect/loader.rs"),
            ("let x = aya_log::EbpfLogger::init(b);", "only redirect/ imports aya", "redirect.rs"),
            ("use rustls;", "only tls/, identity/, native/ and hbone/ import rustls", "tls/server.rs"),
            ("let p = std::env::var(NAME);", "only config/ reads the environment", "config/file.rs"),
            ("stream.set_nodelay(true)?;", "only net.rs sets socket options", "net.rs"),
            ("unsafe { libc::setsockopt(fd) };", "only net.rs sets socket options", "net.rs"),
        ];
        for (line, rule, owner) in cases {
            let text = format!("fn f() {{}}\n{line}\n");
            assert_eq!(violations("sidecar-userspace/src/relay.rs", &text), [(2, rule.to_owned())], "{line}");
            assert_eq!(violations(&format!("sidecar-userspace/src/{owner}"), &text), [], "{line}");
        }
        assert_eq!(violations("sidecar-common/src/addr.rs", "unsafe { x() }").len(), 1);
    }

    #[test]
    fn look_alikes_are_not_violations() {
        for line in [
            "// use aya::Ebpf;",
            "use crate::redirect::aya::X;",
            "let maya::x = 1;",
            "self.aya.x();",
            "let setsockopts = \"set_nodelay\";",
            "#[cfg(test)]\nmod tests {\n    use aya::Ebpf;\n}",
            "let args = std::env::args();",
        ] {
            assert_eq!(violations("sidecar-userspace/src/relay.rs", line), [], "{line}");
        }
    }
}
