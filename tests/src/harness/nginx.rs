//! A real nginx in a pod.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use super::{PATIENCE, Pod, Process, wait_for_port};

/// Starts one that listens on `port` and serves what the block `server` says; each request leaves a line of the format
/// `log` in `access.log` in the pod's directory.
///
/// # Errors
/// When it does not listen in time; the error has its words.
pub fn nginx(pod: &Pod, port: u16, log: &str, server: &str) -> Result<Process> {
    let directory = pod.directory().to_string_lossy();
    let configuration = format!(
        "daemon off; user root; pid {directory}/nginx.pid; error_log stderr; worker_processes 2; events {{}}\n\
         http {{\n\
           client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2; fastcgi_temp_path {directory}/t3;\n\
           uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;\n\
           log_format seen '{log}';\n\
           access_log {directory}/access.log seen;\n\
           sendfile on;\n\
           server {{ {server} }}\n\
         }}\n"
    );
    let file = pod.directory().join("nginx.conf");
    fs::write(&file, configuration).with_context(|| format!("write {}", file.display()))?;
    let mut command = Command::new("nginx");
    command.args(["-p", &directory, "-e", "stderr", "-c"]).arg(&file);
    let nginx = pod.spawn(command)?;
    wait_for_port(pod, port, PATIENCE).with_context(|| nginx.output())?;
    Ok(nginx)
}
