//! PostgreSQL and its own programs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use nix::{sys::signal::Signal, unistd::User};
use sidecar_tests::harness::{Mesh, PATIENCE, Pod, Process, World, work};

use super::{spawn, text};

/// The newest PostgreSQL of the distribution.
fn postgres_program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("is postgresql installed?")?;
    let mut paths: Vec<PathBuf> = versions.flatten().map(|version| version.path().join("bin").join(name)).collect();
    paths.sort();
    paths.pop().filter(|path| path.exists()).with_context(|| format!("no {name} below /usr/lib/postgresql"))
}

/// The database server insists on it.
const AS_POSTGRES: [&str; 3] = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];

/// A fresh database in a world of its own, made once and copied for each server: an emulated CPU is half a minute at it.
static DATABASE: Mutex<Option<(World, PathBuf)>> = Mutex::new(None);

fn database() -> Result<PathBuf> {
    let mut made = DATABASE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, data)) = &*made {
        return Ok(data.clone());
    }
    let world = World::new()?;
    let data = make_database(&world.server)?;
    *made = Some((world, data.clone()));
    Ok(data)
}

/// After the last test: the world is not removed by itself.
pub(crate) fn remove_database() {
    DATABASE.lock().unwrap_or_else(PoisonError::into_inner).take();
}

fn make_database(pod: &Pod) -> Result<PathBuf> {
    let user = User::from_name("postgres")?.context("no user postgres: is postgresql installed?")?;
    let data = pod.directory().join("data");
    fs::create_dir(&data)?;
    std::os::unix::fs::chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    let initdb = postgres_program("initdb")?;
    let create = ["-D", text(&data), "-A", "trust", "-U", "postgres", "--no-sync", "--no-instructions", "-E", "UTF8"];
    pod.run("setpriv", AS_POSTGRES.iter().chain(&[text(&initdb)]).chain(&create))?;
    let everyone = "host all all all trust\n";
    fs::write(data.join("pg_hba.conf"), everyone)?;
    Ok(data)
}

/// A database server with a copy of this database.
fn postgres(pod: &Pod, database: &Path) -> Result<Process> {
    let data = pod.directory().join("data");
    pod.run("cp", ["-a", text(database), text(&data)])?;
    let server = postgres_program("postgres")?;
    let socket = format!("unix_socket_directories={}", text(&data));
    let run = ["-D", text(&data), "-c", "listen_addresses=*", "-c", &socket, "-c", "fsync=off", "-c", "ssl=off"];
    let args: Vec<&str> = AS_POSTGRES.iter().chain(&[text(&server)]).chain(&run).copied().collect();
    let postgres = spawn(pod, "setpriv", &args)?;
    let ready = |lines: &[String]| lines.iter().any(|line| line.contains("ready to accept connections")).then_some(());
    postgres.err.wait_for(PATIENCE, ready).with_context(|| postgres.output())?;
    Ok(postgres)
}

const TO_DATABASE: &str = "host=10.77.0.2 user=postgres dbname=postgres connect_timeout=10";

pub(crate) fn it_runs_pgbench_copies_and_cancels(mesh: &Mesh) -> Result<()> {
    let database = database()?;
    let _postgres = postgres(&mesh.world.server, &database)?;
    let client = &mesh.world.client;
    let pgbench = postgres_program("pgbench")?;
    client.run(text(&pgbench), ["-q", "-i", "-s", "1", TO_DATABASE])?;
    // Simple and prepared queries, then a connection for every transaction.
    let transactions = work(40).to_string();
    for mode in [["-M", "simple"], ["-M", "prepared"], ["-C", "-S"]] {
        let args = ["-c", "8", "-j", "2", "-t", &transactions];
        let report = client.run(text(&pgbench), args.iter().chain(&mode).chain(&[TO_DATABASE]))?;
        ensure!(report.contains("number of failed transactions: 0"), "{mode:?}: {report}");
    }
    copy_there_and_back(client)?;
    cancel(client)?;
    mesh.ensure_carried(8)
}

fn copy_there_and_back(client: &Pod) -> Result<()> {
    let rows = work(300_000);
    let sum = "select count(*), sum(i), md5(string_agg(t, '' order by i)) from copied";
    let script = format!(
        "set -e -o pipefail\n\
         q() {{ psql -qAtX -v ON_ERROR_STOP=1 '{TO_DATABASE}' -c \"$1\"; }}\n\
         q 'create table made as select i, md5(i::text) t from generate_series(1, {rows}) i'\n\
         q 'create table copied (i int, t text)'\n\
         q 'copy made to stdout' | q 'copy copied from stdin'\n\
         q \"{sum}\"\n\
         q \"{}\"",
        sum.replace("copied", "made")
    );
    let report = client.run("bash", ["-c", &script])?;
    let sums: Vec<&str> = report.lines().collect();
    ensure!(sums.len() == 2 && sums[0] == sums[1] && sums[0].starts_with(&format!("{rows}|")), "{report}");
    Ok(())
}

/// Ctrl-C in psql cancels over a second connection.
fn cancel(client: &Pod) -> Result<()> {
    // The notice is from within the statement: after an answer there would be nothing to cancel yet.
    let statement = "do $$ begin raise notice 'started'; perform pg_sleep(60); end $$";
    let mut sleeper = spawn(client, "psql", &["-qAtX", TO_DATABASE, "-c", statement])?;
    let started = |lines: &[String]| lines.iter().any(|line| line.ends_with("started")).then_some(());
    sleeper.err.wait_for(PATIENCE, started).with_context(|| sleeper.output())?;
    sleeper.signal(Signal::SIGINT)?;
    sleeper.wait(PATIENCE)?;
    let message = sleeper.err.text();
    ensure!(message.contains("canceling statement due to user request"), "{message}");
    Ok(())
}
