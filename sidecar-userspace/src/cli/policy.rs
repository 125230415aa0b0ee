//! `sidecar policy …`: ask the rules of a configuration without running.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::ExitCode,
    str::FromStr,
};

use serde_json::{Value as Json, json};

use super::{
    answer::{DONE, FAILED, Format, MISCONFIGURED, fail, faulty, say},
    config::SourceArgs,
};
use crate::{
    config::{self, Rule},
    id::SpiffeId,
    policy::{Decision, Policy, Request, Verdict, Why},
};

/// Ask the rules of a configuration.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Tell whether a connection would be allowed, and which rule decides; exit code 0 if it would, 1 if not.
    Test(TestArgs),
}

/// Arguments of `sidecar policy test`.
#[derive(Clone, Debug, clap::Args)]
pub struct TestArgs {
    /// Who connects: an identity, or the address of a client without one.
    #[arg(long, value_name = "SPIFFE-ID|IP")]
    from: Client,
    /// Where an identity connects from; needed where rules look at addresses.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// The application's port.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    to: u16,
    /// Format of the answer.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(flatten)]
    sources: SourceArgs,
}

/// Who connects.
#[derive(Clone, Debug)]
enum Client {
    Known(SpiffeId),
    Unknown(IpAddr),
}

impl FromStr for Client {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Unknown(address));
        }
        text.parse().map(Self::Known).map_err(|error| format!("neither an IP address nor an identity: {error}"))
    }
}

/// Runs the command. The answer goes to standard output, faults to standard error, one per line.
pub fn run(command: &PolicyCommand) -> ExitCode {
    let PolicyCommand::Test(args) = command;
    let loaded = match config::load(&args.sources.sources()) {
        Ok(loaded) => loaded,
        Err(faults) => return faulty(&faults),
    };
    loaded.config.denials_past_plaintext().iter().for_each(|denial| eprintln!("warning: {denial}"));
    match answer(args, &loaded.config.authorization) {
        // An answer that nobody reads must not look like a verdict.
        Ok((verdict, text)) => say(&text, if verdict == Verdict::Allow { DONE } else { FAILED }, MISCONFIGURED),
        Err(reason) => fail(reason, MISCONFIGURED),
    }
}

fn answer(args: &TestArgs, rules: &[Rule]) -> Result<(Verdict, String), String> {
    let (client, principal) = match (&args.from, args.address) {
        (Client::Unknown(_), Some(_)) => {
            return Err("`--address` is for an identity: `--from` is an address already".into());
        }
        (Client::Unknown(address), None) => (*address, None),
        (Client::Known(id), Some(address)) => (address, Some(id)),
        (Client::Known(id), None) => {
            if let Some(rule) = rules.iter().find(|rule| looks_at_addresses(rule, args.to)) {
                let Rule { name, place, .. } = rule;
                return Err(format!("rule `{name}` ({place}) looks at the client's address; give it with `--address`"));
            }
            // No rule looks at it.
            (Ipv4Addr::UNSPECIFIED.into(), Some(id))
        }
    };
    let decision = Policy::new(rules).decide(&Request { client, principal, port: args.to });
    let text = match args.output {
        Format::Text => sentences(&decision),
        Format::Json => format!("{:#}\n", as_json(&decision)),
    };
    Ok((decision.verdict, text))
}

fn looks_at_addresses(rule: &Rule, port: u16) -> bool {
    (rule.ports.is_empty() || rule.ports.contains(&port)) && rule.from.iter().any(|source| !source.cidrs.is_empty())
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allowed",
        Verdict::Deny => "denied",
    }
}

fn sentences(decision: &Decision) -> String {
    let mut text = format!("{}: {}\n", word(decision.verdict), decision.by);
    if let Some(other) = &decision.dry_run {
        text += &format!("with the dry-run rules in force {}: {}\n", word(other.verdict), other.by);
    }
    text
}

fn as_json(decision: &Decision) -> Json {
    let by = |why: &Why| {
        let kind = match why {
            Why::Rule(_) => "rule",
            Why::NoRule => "no_rule",
            Why::NoneAllows(_) => "none_allows",
        };
        let rule = why.rule().map(|rule| {
            json!({
                "name": rule.name, "action": rule.action.label(), "dry_run": rule.dry_run,
                "file": rule.place.file, "line": rule.place.line,
            })
        });
        json!({ "kind": kind, "rule": rule })
    };
    let dry_run = decision.dry_run.as_ref();
    let dry_run = dry_run.map(|other| json!({ "verdict": other.verdict.label(), "by": by(&other.by) }));
    json!({ "verdict": decision.verdict.label(), "by": by(&decision.by), "dry_run": dry_run })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(subcommand)]
        command: PolicyCommand,
    }

    const RULES: &str = "authorization=[{name: web, action: allow, from: [{namespaces: [shop]}], ports: [80]}, \
                         {name: out, action: deny, from: [{cidrs: [10.0.0.0/8]}], ports: [81]}, \
                         {name: soon, action: deny, dry_run: true, from: [{principals: ['*/sa/web']}], ports: [80]}]";

    fn answer_to(args: &[&str]) -> Result<(Verdict, String), String> {
        let cli = Cli::try_parse_from([&["policy", "test", "--set", RULES], args].concat());
        let PolicyCommand::Test(args) = cli.map_err(|error| error.to_string())?.command;
        let loaded = config::load(&config::Sources { overrides: args.sources.set.clone(), ..Default::default() });
        answer(&args, &loaded.map_err(|faults| faults.to_string())?.config.authorization)
    }

    #[test]
    fn the_deciding_rule_is_named_with_its_place_and_with_what_a_dry_run_would_change() {
        const WEB: &str = "spiffe://td/ns/shop/sa/web";
        for (args, verdict, text) in [
            (
                &["--from", WEB, "--to", "80"][..],
                Verdict::Allow,
                "allowed: allow rule `web` (--set authorization)\n\
                 with the dry-run rules in force denied: deny rule `soon` (--set authorization)\n",
            ),
            (
                &["--from", "192.0.2.1", "--to", "80"],
                Verdict::Deny,
                "denied: default deny: allow rules exist for this port, `web` (--set authorization) first, and none matched\n",
            ),
            (&["--from", "192.0.2.1", "--to", "81"], Verdict::Allow, "allowed: no rule\n"),
            (&["--from", "10.0.0.1", "--to", "81"], Verdict::Deny, "denied: deny rule `out` (--set authorization)\n"),
            (
                &["--from", WEB, "--address", "10.0.0.1", "--to", "81"],
                Verdict::Deny,
                "denied: deny rule `out` (--set authorization)\n",
            ),
        ] {
            assert_eq!(answer_to(args), Ok((verdict, text.to_owned())), "{args:?}");
        }
        let (_, text) = answer_to(&["--from", WEB, "--to", "80", "-o", "json"]).unwrap();
        let json: Json = serde_json::from_str(&text).unwrap();
        assert_eq!((&json["verdict"], &json["by"]["rule"]["name"]), (&json!("allow"), &json!("web")));
        assert_eq!(
            (&json["dry_run"]["verdict"], &json["dry_run"]["by"]["rule"]["name"]),
            (&json!("deny"), &json!("soon"))
        );
    }

    #[test]
    fn a_question_without_an_answer_says_what_is_missing() {
        for (args, expected) in [
            (
                &["--from", "spiffe://td/a", "--to", "81"][..],
                "rule `out` (--set authorization) looks at the client's address; give it with `--address`",
            ),
            (&["--from", "10.0.0.1", "--address", "10.0.0.2", "--to", "81"], "`--from` is an address already"),
            (
                &["--from", "td/a", "--to", "80"],
                "neither an IP address nor an identity: a SPIFFE ID begins with `spiffe://`",
            ),
            (&["--from", "10.0.0.1", "--to", "0"], "0 is not in 1..=65535"),
            (&["--from", "10.0.0.1"], "--to <PORT>"),
        ] {
            let reason = answer_to(args).unwrap_err();
            assert!(reason.contains(expected), "{args:?}: {reason}");
        }
    }
}
