//! `agent server|client CASE`: plays one end of a case inside a pod, and reports what it saw as JSON lines.
//! `agent puppet`: follows the orders of a test.
//!
//! A program of its own, because a socket belongs to the cgroup of the process that makes it.

use anyhow::{Context, Result, bail};
use sidecar_tests::{
    agent::{Seen, puppet},
    cases,
};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args == ["puppet"] {
        return puppet::follow_orders();
    }
    let [role, name] = args.as_slice() else { bail!("usage: agent server|client CASE, or agent puppet") };
    let case = cases::find(name).with_context(|| format!("no case {name}"))?;
    let play = match role.as_str() {
        "server" => case.server,
        "client" => case.client,
        other => bail!("no role {other}"),
    };
    play(&mut Seen::default())
}
