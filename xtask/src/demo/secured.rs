//! The same request with mutual TLS: what the network sees of it, who may ask, and a rotation in flight.

use super::{
    nginx,
    stage::{Stage, names_client},
    story::Story,
    traffic::Load,
};
use crate::world::{SERVER, wait, wire::Wire};
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// How long requests go on around a rotation.
const SPAN: Duration = Duration::from_secs(1);

/// The service accounts of curl's pod: the one that may ask, and one that may not.
const WELCOME: &str = "curl";
const STRANGER: &str = "stranger";

/// The embedded authority at work.
pub(super) struct Authority {
    sidecar: PathBuf,
    directory: PathBuf,
}

impl Authority {
    /// Makes one for a trust domain of the demo's.
    fn make(sidecar: &Path, folder: &Path) -> Result<Self> {
        let authority = Self { sidecar: sidecar.to_owned(), directory: folder.join("ca") };
        authority.command("init", &["--trust-domain", "demo.example"])?;
        Ok(authority)
    }

    /// Issues an identity of this service account into the folder that the pod's sidecar watches.
    fn issue(&self, pod: &str, account: &str) -> Result<PathBuf> {
        let out = self.directory.with_file_name(format!("identity-{pod}"));
        let to = out.display().to_string();
        self.command("issue", &["--namespace", "pods", "--service-account", account, "--out", &to])?;
        Ok(out)
    }

    fn command(&self, verb: &str, args: &[&str]) -> Result<()> {
        let output = Command::new(&self.sidecar).arg("ca").arg(verb).arg(&self.directory).args(args).output();
        let output = output.with_context(|| format!("cannot run {} ca {verb}", self.sidecar.display()))?;
        if !output.status.success() {
            bail!("sidecar ca {verb}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// The whole act.
pub(super) fn secured(stage: &mut Stage<'_>, story: &mut Story) -> Result<()> {
    let authority = identities(stage, story)?;
    request(stage, story)?;
    stranger(stage, story, &authority)?;
    rotation(stage, story, &authority)
}

fn identities(stage: &mut Stage<'_>, story: &mut Story) -> Result<Authority> {
    story.chapter("Mutual TLS: an authority, two identities, strict");
    in_the_clear(stage, story)?;
    let begin = Instant::now();
    let authority = Authority::make(stage.sidecar(), stage.world.folder.path())?;
    let configs = [(&stage.client.pod.name, WELCOME), (&stage.server.pod.name, "nginx")].map(|(pod, account)| {
        let at = authority.issue(pod, account)?;
        let at = at.display();
        let files = format!("{{ cert: {at}/cert.pem, key: {at}/key.pem, roots: {at}/roots.pem }}");
        // The default with strict is closed, which needs a bpffs, and leaves its refusal behind on purpose.
        let open = "capture: { on_failure: open }";
        anyhow::Ok(format!("identity: {{ files: {files} }}\nmtls: {{ mode: strict }}\n{open}\n"))
    });
    story.say(format!("sidecar ca init, sidecar ca issue, twice: {} ms", begin.elapsed().as_millis()));
    let [client, server] = configs;
    let allowed = format!(
        "authorization:\n- {{ name: curl only, action: allow, ports: [{}], from: [{{ principals: ['*/sa/{WELCOME}'] }}] }}\n",
        nginx::PORT
    );
    stage.reconfigure(&client?, &(server? + &allowed))?;
    stage.start_sidecars(story)?;
    Ok(authority)
}

/// What the network sees without sidecars: what is looked for can be found.
fn in_the_clear(stage: &Stage<'_>, story: &mut Story) -> Result<()> {
    let wire = Wire::tap(&stage.world.client)?;
    stage.curl("curl-clear", &[&format!("http://{SERVER}:{}/", nginx::PORT)])?;
    let seen = wire.seen()?;
    let found = seen.holds(nginx::BODY.as_bytes()) && seen.holds(b"GET /");
    story.check(found, "without sidecars the network sees the request and its answer in the clear");
    Ok(())
}

/// The request and its answer, looked for on the network.
fn request(stage: &mut Stage<'_>, story: &mut Story) -> Result<()> {
    let wire = Wire::tap(&stage.world.client)?;
    let seen_lines = stage.nginx.lines()?.len();
    let url = format!("http://{SERVER}:{}/", nginx::PORT);
    story.say(format!("client$ curl {url}"));
    let answer = stage.curl("curl", &[&url])?;
    let seen = wire.seen()?;
    let line = stage.nginx_line(seen_lines)?;
    story.show(&line);
    story.check(
        answer.trim_end() == nginx::BODY && names_client(&line),
        "the request is answered, and nginx sees the real client, as without mutual TLS",
    );
    let plain = seen.holds(nginx::BODY.as_bytes()) || seen.holds(b"GET /");
    let claim = format!(
        "none of the {} packets ({} bytes) between the pods holds a byte of the request or of its answer in the clear",
        seen.packets,
        seen.bytes.len()
    );
    story.check(seen.packets > 0 && !plain, claim);
    Ok(())
}

/// Whom the rules do not name.
fn stranger(stage: &mut Stage<'_>, story: &mut Story, authority: &Authority) -> Result<()> {
    let url = format!("http://{SERVER}:{}/", nginx::PORT);
    authority.issue(&stage.client.pod.name, STRANGER)?;
    story.say("the client's sidecar is given the identity of a service account that no rule names");
    let refused = || Ok(stage.curl("curl-stranger", &[&url]).err());
    let error = wait::until(Duration::from_secs(5), "a refusal", refused);
    if let Ok(error) = &error {
        story.show(error.to_string().lines().last().unwrap_or_default());
    }
    // Nothing was said about the application: no answer, and no connection that is refused or that nobody takes.
    let reset = error.is_ok_and(|error| error.to_string().contains("Connection reset by peer"));
    story.check(reset, "its request is refused: the connection is reset");
    authority.issue(&stage.client.pod.name, WELCOME)?;
    let answered = || Ok(stage.curl("curl-welcome", &[&url]).ok());
    let answer = wait::until(Duration::from_secs(5), "an answer", answered);
    story.check(answer.is_ok(), "with the identity that the rule names it is answered again, with no restart");
    Ok(())
}

/// New certificates on both sides while requests go on.
fn rotation(stage: &mut Stage<'_>, story: &mut Story, authority: &Authority) -> Result<()> {
    let load = Load::start(stage, "load-rotation")?;
    wait::pause(SPAN)?;
    for (pod, account) in [(&stage.client.pod.name, WELCOME), (&stage.server.pod.name, "nginx")] {
        authority.issue(pod, account)?;
        wait::pause(SPAN)?;
    }
    let outcomes = load.stop()?;
    let failed = outcomes.iter().filter(|outcome| outcome.fault.is_some()).count();
    let claim = format!("both certificates are replaced under load: {} requests, {failed} failed", outcomes.len());
    story.check(!outcomes.is_empty() && failed == 0, claim);
    Ok(())
}
