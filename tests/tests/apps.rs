//! Real applications, unmodified, in two pods with a sidecar in each: in plaintext, with mutual TLS or nothing, and with the fast path.

#[path = "apps/postgres.rs"]
mod postgres;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use sidecar_tests::harness::{Layout, Mesh, PATIENCE, Pod, Process, eventually, nginx, patient, wait_for_port, work};

/// What an application does in a mesh of its own.
type Test = fn(&Mesh) -> Result<()>;

const TESTS: [(&str, Test); 8] = [
    ("nginx_serves_curl_and_logs_the_real_client", nginx_serves_curl_and_logs_the_real_client),
    ("a_gigabyte_from_nginx_arrives_intact", a_gigabyte_from_nginx_arrives_intact),
    ("wrk_finds_no_failed_request", wrk_finds_no_failed_request),
    ("redis_passes_its_own_benchmark", redis_passes_its_own_benchmark),
    ("redis_delivers_published_messages", redis_delivers_published_messages),
    ("python_http_server_serves_curl", python_http_server_serves_curl),
    ("node_answers_node_with_the_hash_of_its_upload", node_answers_node_with_the_hash_of_its_upload),
    ("postgres_runs_pgbench_copies_and_cancels", postgres::it_runs_pgbench_copies_and_cancels),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = TESTS.into_iter().flat_map(|(name, test)| {
        Layout::for_applications().iter().map(move |(layout_name, layout)| {
            let run = move || in_a_mesh(*layout, test).map_err(|error| Failed::from(format!("{error:#}")));
            Trial::test(format!("{name}::{layout_name}"), run)
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    postgres::remove_database();
    conclusion.exit_code()
}

fn in_a_mesh(layout: Layout, test: Test) -> Result<()> {
    let mesh = Mesh::new(layout)?;
    test(&mesh)?;
    mesh.ensure_encrypted()
}

fn spawn(pod: &Pod, program: &str, args: &[&str]) -> Result<Process> {
    let mut command = Command::new(program);
    command.args(args).current_dir(pod.directory());
    pod.spawn(command).with_context(|| format!("is {program} installed?"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of the tests are ASCII")
}

/// A gigabyte, less on a slow machine or where it is encrypted, in which no two megabytes are alike, most of it holes.
fn gigabyte(path: &Path, encrypted: bool) -> Result<()> {
    let file = File::create(path)?;
    let megabytes = u64::from(work(if encrypted { 256 } else { 1024 }));
    file.set_len(megabytes << 20)?;
    for megabyte in 0..megabytes {
        let mark: Vec<u8> = (0..512).flat_map(|i| (megabyte * 1_000_003 + i * 7919).to_le_bytes()).collect();
        file.write_all_at(&mark, megabyte << 20)?;
    }
    Ok(())
}

fn web(pod: &Pod) -> Result<Process> {
    let root = text(pod.directory());
    let server = format!(
        "listen 80; listen [::]:80; root {root}; keepalive_requests 1000000; location = /hello {{ return 200 hello; }} \
         location ~ ^/[0-9]+/(part[0-9]+)$ {{ sendfile off; output_buffers 1 256k; alias {root}/$1; }}"
    );
    nginx(pod, 80, "$remote_addr $server_addr:$server_port $request_uri $status", &server)
}

fn nginx_serves_curl_and_logs_the_real_client(mesh: &Mesh) -> Result<()> {
    let (client, server) = (&mesh.world.client, &mesh.world.server);
    let _nginx = web(server)?;
    for host in ["10.77.0.2", "[fd77::2]"] {
        let url = format!("http://{host}/hello");
        ensure!(client.run("curl", ["-sS", "--max-time", "10", &url])? == "hello");
    }
    // One connection, many requests.
    let many = "http://10.77.0.2/hello?[1-200]";
    ensure!(client.run("curl", ["-sS", "--max-time", "20", many])? == "hello".repeat(200));
    let log = fs::read_to_string(server.directory().join("access.log"))?;
    ensure!(log.contains("10.77.0.1 10.77.0.2:80 /hello 200"), "{log}");
    ensure!(log.contains("fd77::1 fd77::2:80 /hello 200"), "{log}");
    ensure!(log.lines().count() == 202, "{} requests logged", log.lines().count());
    mesh.ensure_carried(3)
}

fn a_gigabyte_from_nginx_arrives_intact(mesh: &Mesh) -> Result<()> {
    let (client, server) = (&mesh.world.client, &mesh.world.server);
    let body = server.directory().join("body");
    gigabyte(&body, mesh.strict)?;
    let _nginx = web(server)?;
    // Byte by byte against the original: stricter than a hash, and quicker.
    let compare = |page: &str, original: &str| {
        let fetch = format!("curl -sS --max-time 100 'http://10.77.0.2/{page}'");
        client.run("bash", ["-c", &format!("set -o pipefail; {fetch} | cmp - {original}")])
    };
    compare("body", text(&body))?;
    if mesh.accelerated.is_some() {
        large_answers(mesh, &body, compare)?;
    }
    mesh.ensure_carried(1)
}

/// What sendfile(2) sends stays with TCP, and so does a stream of which something always waits. One write for each answer does not, on a
/// connection that lives until it has been looked at, at a moment at which no answer is on its way.
fn large_answers(mesh: &Mesh, body: &Path, compare: impl Fn(&str, &str) -> Result<String>) -> Result<()> {
    const ROUNDS: u32 = 24;
    const BYTES: u64 = 256 * 1024;
    let parts = 4 * u64::from(work(64));
    let (directory, body) = (mesh.world.server.directory(), text(body));
    let split = format!("head -c {} {body} | split -b {BYTES} -d -a 5 - {}/part", parts * BYTES, text(directory));
    mesh.world.server.run("bash", ["-c", &split])?;
    let page = format!("[1-{ROUNDS}]/part[00000-{:05}]", parts - 1);
    let original = format!("<(for round in $(seq {ROUNDS}); do head -c {} {body}; done)", parts * BYTES);
    let mut compared = compare(&page, &original);
    let accelerated = eventually(patient(PATIENCE), || {
        let done = compared.is_err() || mesh.ensure_accelerated().is_ok();
        if !done {
            compared = compare(&page, &original);
        }
        done
    });
    compared?;
    ensure!(accelerated || mesh.ensure_accelerated().is_ok(), "no connection came onto the fast path{}", mesh.logs());
    Ok(())
}

fn wrk_finds_no_failed_request(mesh: &Mesh) -> Result<()> {
    let _nginx = web(&mesh.world.server)?;
    // Its own limit for an answer is 2 s, in which a slow machine does not shake hands with forty at once.
    let limit = format!("{}s", patient(Duration::from_secs(2)).as_secs());
    for close in ["Connection: keep-alive", "Connection: close"] {
        let args = ["-t2", "-c40", "-d2s", "--timeout", &limit, "-H", close, "http://10.77.0.2/hello"];
        let report = mesh.world.client.run("wrk", args)?;
        let answered = report.lines().any(|line| line.contains(" requests in ") && !line.trim().starts_with("0 "));
        let failed = report.contains("Socket errors") || report.contains("Non-2xx");
        ensure!(answered && !failed, "{close}: {report}{}", mesh.logs());
    }
    mesh.ensure_carried(40)
}

fn redis(pod: &Pod) -> Result<Process> {
    let args = ["--port", "6379", "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--dir", "."];
    let redis = spawn(pod, "redis-server", &args)?;
    wait_for_port(pod, 6379, PATIENCE).with_context(|| redis.output())?;
    Ok(redis)
}

fn redis_passes_its_own_benchmark(mesh: &Mesh) -> Result<()> {
    let _redis = redis(&mesh.world.server)?;
    let client = &mesh.world.client;
    let clients = work(50).min(50);
    let (requests, bytes, at_once) = (work(2000).to_string(), work(2000).to_string(), clients.to_string());
    for pipeline in ["1", "16"] {
        let tests = "ping,set,get,incr,lpush,lrange_100,mset";
        let args =
            ["-h", "10.77.0.2", "-n", &requests, "-c", &at_once, "-d", &bytes, "-P", pipeline, "-t", tests, "--csv"];
        let report = client.run("redis-benchmark", args)?;
        ensure!(report.lines().count() >= 8 && !report.to_lowercase().contains("error"), "{report}");
    }
    let big = "x".repeat(100_000);
    client.run("redis-cli", ["-h", "10.77.0.2", "set", "big", &big])?;
    ensure!(client.run("redis-cli", ["-h", "10.77.0.2", "get", "big"])?.trim() == big, "the big value has changed");
    mesh.ensure_carried(clients.into())
}

fn redis_delivers_published_messages(mesh: &Mesh) -> Result<()> {
    let _redis = redis(&mesh.world.server)?;
    let client = &mesh.world.client;
    let subscriber = spawn(client, "redis-cli", &["-h", "10.77.0.2", "subscribe", "news"])?;
    let line = |wanted: &str| {
        let found = |lines: &[String]| lines.iter().any(|line| line == wanted).then_some(());
        subscriber.out.wait_for(PATIENCE, found).with_context(|| format!("no {wanted}{}", subscriber.output()))
    };
    line("subscribe")?;
    for message in ["first", "second"] {
        ensure!(client.run("redis-cli", ["-h", "10.77.0.2", "publish", "news", message])?.trim() == "1");
        line(message)?;
    }
    mesh.ensure_carried(3)
}

fn python_http_server_serves_curl(mesh: &Mesh) -> Result<()> {
    let (client, server) = (&mesh.world.client, &mesh.world.server);
    fs::write(server.directory().join("page"), "from python")?;
    let python = spawn(server, "python3", &["-u", "-m", "http.server", "8000", "--bind", "::"])?;
    wait_for_port(server, 8000, PATIENCE).with_context(|| python.output())?;
    for host in ["10.77.0.2", "[fd77::2]"] {
        let url = format!("http://{host}:8000/page");
        ensure!(client.run("curl", ["-sS", "--max-time", "10", &url])? == "from python");
    }
    let named = |lines: &[String]| {
        let by = |client: &str| lines.iter().any(|line| line.starts_with(client));
        (by("::ffff:10.77.0.1 - ") && by("fd77::1 - ")).then_some(())
    };
    python.err.wait_for(PATIENCE, named).with_context(|| format!("its log misses a client{}", python.output()))?;
    mesh.ensure_carried(2)
}

const NODE_SERVER: &str = "
const http = require('http'), crypto = require('crypto');
http.createServer((request, response) => {
  const hash = crypto.createHash('sha256');
  request.on('data', part => hash.update(part));
  request.on('end', () => response.end(JSON.stringify({
    hash: hash.digest('hex'), peer: request.socket.remoteAddress, local: request.socket.localAddress })));
}).listen(3000);";

const NODE_CLIENT: &str = "
const http = require('http'), crypto = require('crypto'), body = crypto.randomBytes(process.argv[1] << 20);
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
const hash = crypto.createHash('sha256').update(body).digest('hex');
const once = () => new Promise((done, fail) => {
  const request = http.request({ host: '10.77.0.2', port: 3000, method: 'POST', agent }, response => {
    let text = '';
    response.on('data', part => text += part);
    response.on('end', () => done(JSON.parse(text)));
  });
  request.on('error', fail);
  request.end(body);
});
Promise.all([...Array(8)].map(once)).then(answers => {
  for (const answer of answers) {
    if (answer.hash !== hash) throw new Error('the body has changed');
    if (answer.peer !== '::ffff:10.77.0.1') throw new Error('peer ' + answer.peer);
    if (answer.local !== '::ffff:10.77.0.2') throw new Error('local ' + answer.local);
  }
  console.log('all intact');
  process.exit(0);
}).catch(error => { console.error(error); process.exit(1); });";

fn node_answers_node_with_the_hash_of_its_upload(mesh: &Mesh) -> Result<()> {
    let (client, server) = (&mesh.world.client, &mesh.world.server);
    let node = spawn(server, "node", &["-e", NODE_SERVER])?;
    wait_for_port(server, 3000, PATIENCE).with_context(|| node.output())?;
    ensure!(client.run("node", ["-e", NODE_CLIENT, &work(16).to_string()])?.trim() == "all intact");
    mesh.ensure_carried(4)
}
