//! `sidecar ca …`: the embedded certificate authority.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use super::answer::{DONE, FAILED, Format, MISCONFIGURED, fail, say};
use crate::{
    ca::{self, Error, Inspected},
    config,
    id::SpiffeId,
};

/// The embedded certificate authority.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum CaCommand {
    /// Make an authority: a directory with a root certificate and its key.
    Init(InitArgs),
    /// Issue a workload's certificate.
    Issue(IssueArgs),
    /// Replace the root, step by step, so that no connection fails: announce, switch, finish.
    Rotate(RotateArgs),
    /// Tell what certificates say, and which rules of X509-SVID they break; exit code 1 if any.
    Inspect(InspectArgs),
}

/// Arguments of `sidecar ca init`.
#[derive(Clone, Debug, clap::Args)]
pub struct InitArgs {
    /// Where the authority shall be; made if it is not there.
    directory: PathBuf,
    /// The domain whose workloads it names: spiffe://<TRUST_DOMAIN>/…
    #[arg(long)]
    trust_domain: String,
    /// Lifetime of the root: 90d, 10y.
    #[arg(long, default_value = "10y", value_parser = lifetime)]
    lifetime: Duration,
}

/// Arguments of `sidecar ca issue`.
#[derive(Clone, Debug, clap::Args)]
pub struct IssueArgs {
    /// The authority.
    directory: PathBuf,
    /// The identity: spiffe://<trust domain>/<path>.
    #[arg(long, required_unless_present = "namespace", conflicts_with_all = ["namespace", "service_account"])]
    id: Option<SpiffeId>,
    /// Kubernetes namespace: with the service account stands for spiffe://<trust domain>/ns/<NAMESPACE>/sa/<SERVICE_ACCOUNT>.
    #[arg(long, requires = "service_account")]
    namespace: Option<String>,
    /// Kubernetes service account.
    #[arg(long, requires = "namespace")]
    service_account: Option<String>,
    /// Lifetime of the certificate: 30m, 24h.
    #[arg(long, default_value = "24h", value_parser = lifetime)]
    lifetime: Duration,
    /// Where cert.pem, key.pem and roots.pem are written, all at once; made if it is not there.
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,
}

/// Arguments of `sidecar ca rotate`.
#[derive(Clone, Debug, clap::Args)]
pub struct RotateArgs {
    /// The authority.
    directory: PathBuf,
    /// Take the last step: forget the old root.
    #[arg(long)]
    finish: bool,
    /// Lifetime of a new root.
    #[arg(long, default_value = "10y", value_parser = lifetime)]
    lifetime: Duration,
}

/// Arguments of `sidecar ca inspect`.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// A PEM file, or a directory with some.
    path: PathBuf,
    /// Format of the output.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Does what the command line says.
pub(super) fn run(command: &CaCommand) -> ExitCode {
    let answer = match command {
        CaCommand::Init(args) => init(args),
        CaCommand::Issue(args) => issue(args),
        CaCommand::Rotate(args) => rotate(args),
        CaCommand::Inspect(args) => return inspect(args),
    };
    match answer {
        Ok(text) => say(&text, DONE, FAILED),
        Err(error) => failed(&error),
    }
}

fn init(args: &InitArgs) -> Result<String, Error> {
    ca::init(&args.directory, &args.trust_domain, args.lifetime, SystemTime::now())?;
    let directory = args.directory.display();
    Ok(format!(
        "authority of {} made in {directory}; its key is {directory}/ca.key: whoever has it can be anyone\n",
        args.trust_domain
    ))
}

fn issue(args: &IssueArgs) -> Result<String, Error> {
    let id = match (&args.id, &args.namespace, &args.service_account) {
        (None, Some(namespace), Some(account)) => {
            let domain = ca::trust_domain(&args.directory)?;
            let text = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
            text.parse().map_err(|error| Error::Name { text, error })?
        }
        (Some(id), ..) => id.clone(),
        // clap demands one of them.
        (None, ..) => return Err(Error::NoName),
    };
    ca::issue(&args.directory, &id, args.lifetime, &args.out, SystemTime::now())?;
    let out = args.out.display();
    Ok(format!("{id} issued: {out}/cert.pem, {out}/key.pem, {out}/roots.pem\n"))
}

fn rotate(args: &RotateArgs) -> Result<String, Error> {
    let step = ca::rotate(&args.directory, args.lifetime, args.finish, SystemTime::now())?;
    Ok(step.told(&args.directory) + "\n")
}

fn inspect(args: &InspectArgs) -> ExitCode {
    let found = match ca::inspect(&args.path, SystemTime::now()) {
        Ok(found) => found,
        Err(error) => return failed(&error),
    };
    let good = found.iter().all(|certificate| certificate.report.problems.is_empty());
    let text = match args.output {
        Format::Text => found.iter().map(text).collect(),
        Format::Json => format!("{:#}\n", serde_json::json!(found)),
    };
    say(&text, if good { DONE } else { FAILED }, FAILED)
}

fn text(certificate: &Inspected) -> String {
    let Inspected { file, number, report } = certificate;
    let id = report.id.as_deref().unwrap_or("-");
    let kind = if report.authority { "authority" } else { "workload" };
    let mut text = format!("{} #{number}: {kind} {id}\n", file.display());
    let usages = [report.key_usage.as_slice(), &report.extended_key_usage].concat().join(", ");
    for (name, value) in [
        ("serial", &report.serial),
        ("issuer", &report.issuer),
        ("valid from", &report.not_before),
        ("valid until", &report.not_after),
        ("usage", &usages),
    ] {
        text += &format!("  {name:<12} {value}\n");
    }
    for problem in &report.problems {
        text += &format!("  {:<12} {problem}\n", "PROBLEM");
    }
    text
}

fn failed(error: &Error) -> ExitCode {
    fail(error, if error.is_usage() { MISCONFIGURED } else { FAILED })
}

/// A lifetime: a number with its unit, as in a configuration.
fn lifetime(text: &str) -> Result<Duration, String> {
    config::time(text).ok_or_else(|| format!("`{text}` is no lifetime; write 30m, 24h, 90d or 10y"))
}
