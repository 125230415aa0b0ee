//! HAProxy as a plain loopback proxy that the client dials.

use crate::{
    load::serve,
    world::{SERVER, folder::Folder},
};
use anyhow::Result;
use std::{fmt::Write, path::PathBuf};

/// Its port for a port of the server.
pub(super) fn port(server: u16) -> u16 {
    server + 10_000
}

/// Writes its configuration: one thread, like the others.
pub(super) fn configure(folder: &Folder) -> Result<PathBuf> {
    let mut text = "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 2s\n  \
                    timeout client 1h\n  timeout server 1h\n"
        .to_owned();
    for server in serve::PORTS {
        write!(text, "listen to-{server}\n  bind 127.0.0.1:{}\n  server only {SERVER}:{server}\n", port(server))?;
    }
    folder.write("haproxy.cfg", &text)
}
