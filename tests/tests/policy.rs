//! Rules of a running sidecar, and of one that does not run.

use std::{fs, process::Output};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, TO_V4, TO_V6},
    harness::{PATIENCE, Pod, Puppet, Sidecar, World, eventually},
};

const ONE_RULE: &str = "authorization:\n- { name: first, action: deny, ports: [9] }\n";

/// Replaces the configuration of the sidecar in `pod` and asks it to read it again.
fn reload(sidecar: &Sidecar, pod: &Pod, config: &str) -> Result<()> {
    fs::write(pod.directory().join("sidecar.yaml"), config)?;
    sidecar.signal(Signal::SIGHUP)
}

/// What the sidecar says of its configuration: the generation, whether the last reading had no fault, and the rules.
fn in_force(sidecar: &Sidecar, pod: &Pod) -> Result<(f64, f64, Vec<String>)> {
    let metrics = sidecar.metrics()?;
    let dump: serde_json::Value = serde_json::from_str(&pod.get(15000, "/config_dump")?.body)?;
    let rules = dump["authorization"].as_array().context("no rules in the dump")?;
    let names = rules.iter().filter_map(|rule| Some(rule["name"].as_str()?.to_owned())).collect();
    let value = |name| metrics.sum(name, &[]);
    Ok((value("sidecar_config_generation"), value("sidecar_config_last_reload_success"), names))
}

#[test]
fn sighup_puts_new_rules_in_force_and_a_wrong_configuration_changes_nothing() -> Result<()> {
    let world = World::new()?;
    let pod = &world.client;
    let sidecar = Sidecar::start(pod, ONE_RULE)?;
    let becomes = |generation: f64, success: f64, rules: &[&str]| -> Result<()> {
        let expected = (generation, success, rules.iter().map(|rule| (*rule).to_owned()).collect());
        let is = || in_force(&sidecar, pod).is_ok_and(|now| now == expected);
        ensure!(
            eventually(PATIENCE, is),
            "{:?}, not {expected:?}{}",
            in_force(&sidecar, pod)?,
            sidecar.process.output()
        );
        Ok(())
    };
    becomes(1.0, 1.0, &["first"])?;
    reload(&sidecar, pod, &ONE_RULE.replace("first", "second"))?;
    becomes(2.0, 1.0, &["second"])?;
    reload(&sidecar, pod, "authorization:\n- { name: third, action: maybe }\n")?;
    becomes(2.0, 0.0, &["second"])?;
    let told = sidecar.process.output();
    ensure!(told.contains("sidecar.yaml:2:26: authorization: `action`: `maybe` is not allowed"), "{told}");
    // As a full disk leaves it.
    reload(&sidecar, pod, "")?;
    let told = || sidecar.process.err.text().contains("sidecar.yaml: has no key; was it cut off?");
    ensure!(eventually(PATIENCE, told), "{}", sidecar.process.output());
    becomes(2.0, 0.0, &["second"])?;
    reload(&sidecar, pod, "proxy: { max_connections: 7, workers: 1 }\nauthorization: []\n")?;
    becomes(3.0, 1.0, &[])?;
    let told = sidecar.process.output();
    ensure!(told.contains("proxy.workers, proxy.max_connections"), "{told}");
    // What cannot change is still what it was, and the counters of decisions are there from the start.
    let dump: serde_json::Value = serde_json::from_str(&pod.get(15000, "/config_dump")?.body)?;
    ensure!(dump["proxy"]["max_connections"] == 65536, "{dump}");
    let series = sidecar.metrics()?.0.into_iter().filter(|sample| sample.name == "sidecar_authorization_total").count();
    ensure!(series == 4, "{series} series of decisions");
    ensure!(sidecar.is_ready(), "not ready any more");
    Ok(())
}

/// The client's IPv4 address is denied, its IPv6 address is not.
const WITHOUT_V4: &str = "authorization:\n- { name: no v4, action: deny, from: [{ cidrs: [10.77.0.1/32] }] }\n";

#[test]
fn new_rules_reset_the_open_connections_that_they_do_not_allow_and_no_others() -> Result<()> {
    let world = World::new()?;
    let (mut app, mut server) = (Puppet::start(&world.client)?, Puppet::serving(&world.server, ANY)?);
    let sidecar = Sidecar::start(&world.server, "{}")?;
    let (v4, v6) = (app.open(TO_V4)?.0, app.open(TO_V6)?.0);
    app.echo(v4)?;
    app.echo(v6)?;
    reload(&sidecar, &world.server, WITHOUT_V4)?;
    let end = app.order(Order::AwaitEnd(v4))?.outcome;
    ensure!(end == "ECONNRESET", "{end}");
    app.echo(v6).context("the connection that the new rules allow")?;
    // What comes now is refused before the application hears of it.
    let heard = server.accepted()?.len();
    let end = app.end_of(TO_V4)?;
    ensure!(end == "ECONNRESET", "{end}");
    app.visit(TO_V6)?;
    ensure!(server.accepted()?.len() == heard + 1, "the application heard of a connection that was refused");
    let closed = |reason| sidecar.closed(reason).is_ok_and(|count| count == 1);
    ensure!(
        eventually(PATIENCE, || closed("no_longer_authorized") && closed("unauthorized")),
        "{}",
        sidecar.verdicts()
    );
    let decided = |verdict| -> Result<f64> {
        Ok(sidecar.metrics()?.sum("sidecar_authorization_total", &[("verdict", verdict), ("dry_run", "false")]))
    };
    ensure!(
        (decided("allow")?, decided("deny")?) == (3.0, 1.0),
        "{} allowed, {} denied",
        decided("allow")?,
        decided("deny")?
    );
    let told = sidecar.process.output();
    ensure!(
        told.contains("denied") && told.contains("deny rule `no v4` (") && told.contains("sidecar.yaml:2)"),
        "{told}"
    );
    // And back.
    reload(&sidecar, &world.server, "{}")?;
    ensure!(eventually(PATIENCE, || app.visit(TO_V4).is_ok()), "still denied{}", sidecar.process.output());
    Ok(())
}

#[test]
fn rules_in_a_dry_run_are_told_of_and_stop_nobody() -> Result<()> {
    let world = World::new()?;
    let (mut app, _server) = (Puppet::start(&world.client)?, Puppet::serving(&world.server, ANY)?);
    let sidecar = Sidecar::start(&world.server, &WITHOUT_V4.replace("action", "dry_run: true, action"))?;
    app.visit(TO_V4)?;
    app.visit(TO_V6)?;
    let metrics = sidecar.metrics()?;
    let decided =
        |verdict, dry_run| metrics.sum("sidecar_authorization_total", &[("verdict", verdict), ("dry_run", dry_run)]);
    let counts =
        [decided("allow", "false"), decided("deny", "false"), decided("allow", "true"), decided("deny", "true")];
    ensure!(counts == [2.0, 0.0, 0.0, 1.0], "{counts:?}");
    ensure!(sidecar.process.output().contains("dry run"), "{}", sidecar.process.output());
    Ok(())
}

fn ask(arguments: &[&str]) -> Result<Output> {
    Ok(Sidecar::program()?.args(["policy", "test"]).args(arguments).output()?)
}

#[test]
fn policy_test_tells_the_rule_and_its_line_and_exits_with_the_verdict() -> Result<()> {
    let world = World::new()?;
    let file = world.client.directory().join("rules.yaml");
    fs::write(
        &file,
        "authorization:\n- { name: web, action: allow, from: [{ namespaces: [shop] }], ports: [80] }\n\
         - { name: soon, action: deny, dry_run: true, ports: [80] }\n",
    )?;
    let config = file.to_str().context("the path is text")?;
    let (shop, other) = ("spiffe://td/ns/shop/sa/web", "spiffe://td/ns/other/sa/web");
    for (arguments, code, told) in [
        (
            &["--from", shop, "--to", "80", "--config", config][..],
            0,
            format!(
                "allowed: allow rule `web` ({config}:2)\n\
                 with the dry-run rules in force denied: deny rule `soon` ({config}:3)\n"
            ),
        ),
        (
            &["--from", other, "--to", "80", "--config", config],
            1,
            format!(
                "denied: default deny: allow rules exist for this port, `web` ({config}:2) first, and none matched\n"
            ),
        ),
        (&["--from", "10.0.0.1", "--to", "81", "--config", config], 0, "allowed: no rule\n".into()),
        (&["--from", "10.0.0.1", "--to", "81", "--set", "authorization=x"], 2, String::new()),
        (&["--from", "nobody", "--to", "81"], 2, String::new()),
    ] {
        let answer = ask(arguments)?;
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        ensure!((answer.status.code(), &text) == (Some(code), &told), "{arguments:?}: {answer:?}");
        ensure!((code == 2) != answer.stderr.is_empty(), "{arguments:?}: {answer:?}");
    }
    let answer = ask(&["--from", other, "--to", "80", "-o", "json", "--config", config])?;
    let json: serde_json::Value = serde_json::from_slice(&answer.stdout)?;
    ensure!(answer.status.code() == Some(1) && json["verdict"] == "deny" && json["by"]["rule"]["line"] == 2, "{json}");
    Ok(())
}

#[test]
fn an_answer_that_cannot_be_given_is_no_verdict() -> Result<()> {
    let answer = ask(&["--from", "10.0.0.1", "--address", "10.0.0.2", "--to", "81"])?;
    let told = String::from_utf8_lossy(&answer.stderr).into_owned();
    ensure!(answer.status.code() == Some(2) && told.starts_with("sidecar: `--address` is for an identity"), "{told}");
    let full = fs::File::options().write(true).open("/dev/full")?;
    let mut command = Sidecar::program()?;
    let answer = command.args(["policy", "test", "--from", "10.0.0.1", "--to", "81"]).stdout(full).output()?;
    let told = String::from_utf8_lossy(&answer.stderr).into_owned();
    ensure!(answer.status.code() == Some(2) && told.starts_with("sidecar: cannot write to standard output"), "{told}");
    Ok(())
}
