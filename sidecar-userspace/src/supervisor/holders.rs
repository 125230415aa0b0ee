//! Who has a port that is not to be had.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// The processes that listen on this port of our network namespace, as an operator looks for them; those that we see.
pub(super) fn of(port: u16) -> Vec<String> {
    let sockets: HashSet<PathBuf> = ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(Path::new("/proc/thread-self/net").join(table)).ok())
        .flat_map(|table| listeners(&table, port))
        .collect();
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let holds = |process: &PathBuf| {
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok()).any(|link| sockets.contains(&link))
    };
    processes.flatten().map(|entry| entry.path()).filter(holds).filter_map(|process| named(&process)).collect()
}

/// The links of the sockets in a table of /proc/net (proc_pid_net(5)) that listen on the port.
fn listeners(table: &str, port: u16) -> Vec<PathBuf> {
    const LISTENS: &str = "0A";
    let suffix = format!(":{port:04X}");
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == LISTENS;
        is.then(|| fields.get(9).map(|inode| PathBuf::from(format!("socket:[{inode}]"))))?
    };
    table.lines().filter_map(socket).collect()
}

fn named(process: &Path) -> Option<String> {
    let pid = process.file_name()?.to_str()?;
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map_or("", str::trim);
    let stopped = if line("State:").starts_with('T') { ", stopped: kill it, or let it go on" } else { "" };
    // What the kernel calls a worker is the `exe` of the /proc/self/exe that it was started by.
    let program = fs::read_link(process.join("exe")).ok();
    let name = program.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    Some(format!("{pid} ({}{stopped})", name.unwrap_or(line("Name:"))))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_listens_is_named_and_who_is_connected_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ours = format!("{} (", std::process::id());
        assert!(of(port).iter().any(|holder| holder.starts_with(&ours)), "{:?}", of(port));
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(of(stream.local_addr().unwrap().port()), Vec::<String>::new());
    }
}
