//! nginx as anyone runs it, but with its files in the world's folder.

use crate::world::{SERVER, World, pod::Place, process::Process};
use anyhow::Result;
use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Where it listens.
pub(super) const PORT: u16 = 8080;
/// What it answers to `/`.
pub(super) const BODY: &str = "hello from nginx";
/// A file large enough that a slow client is still busy with it when someone looks.
pub(super) const LARGE: &str = "/large";

const LARGE_BYTES: usize = 8 << 20;

/// Starts it in the server pod and waits until it accepts.
pub(super) fn start(world: &World) -> Result<Process> {
    let folder = world.folder.path().display().to_string();
    world.folder.write("large", &"0123456789abcde\n".repeat(LARGE_BYTES / 16))?;
    let config = world.folder.write("nginx.conf", &configuration(&folder))?;
    let config = config.display().to_string();
    let errors = format!("{folder}/nginx-error.log");
    let line = ["nginx", "-e", &errors, "-p", &folder, "-c", &config];
    let mut nginx = Process::start(&world.server, Place::App, &world.folder, "nginx", &line)?;
    nginx.until(Duration::from_secs(5), "accepting connections", || {
        let address = SocketAddr::from((SERVER, PORT));
        Ok(world.server.netns.enter(|| Ok(TcpStream::connect(address)?)).ok())
    })?;
    Ok(nginx)
}

/// Its access log names the client as nginx sees it: the answer of the kernel to accept(2).
fn configuration(folder: &str) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {folder}/{kind};\n"))
        .concat();
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {folder}/nginx.pid;\nevents {{ worker_connections 4096; }}\n\
         http {{\n  log_format seen 'client=$remote_addr:$remote_port server=$server_addr:$server_port \
         \"$request\" $status';\n  access_log /dev/stdout seen;\n{temporary}  server {{\n    listen {PORT};\n    \
         location = / {{ default_type text/plain; return 200 '{BODY}\\n'; }}\n    \
         location = {LARGE} {{ root {folder}; }}\n  }}\n}}\n"
    )
}
