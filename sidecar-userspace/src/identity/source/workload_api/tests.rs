//! Against a server on gRPC's own implementation.

use std::{
    fs,
    io::{BufRead, BufReader, Lines, Write},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, SystemTime},
};

use super::*;
use crate::{
    config,
    identity::{
        IdentityWatch, Source, State,
        mint::{Root, workload},
    },
};

const WEB: &str = "spiffe://td/ns/shop/sa/web";

struct Server {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
    folder: PathBuf,
}

impl Server {
    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("workload-api-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn start() -> Self {
        let folder = Self::folder();
        let _ = fs::remove_file(folder.join("api.sock"));
        // Debian's Python: another that is first on PATH has not Debian's gRPC.
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", include_str!("server.py")])
            .arg(folder.join("api.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut server = Self { child, said, folder };
        server.hear("ready");
        server
    }

    fn hear(&mut self, word: &str) {
        let said = self.said.next().map(Result::unwrap);
        assert_eq!(said.as_deref(), Some(word), "is python3-grpcio installed? `cargo xtask setup` installs it");
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    fn send(&mut self, message: &[u8]) {
        let file = self.folder.join("message");
        fs::write(&file, message).unwrap();
        self.tell(&format!("send {}", file.display()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = value.len();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(value);
    bytes
}

/// A response with one SVID that lasts so long, and `more`.
fn response(root: &Root, seconds: u64, more: &[u8]) -> Vec<u8> {
    let mut params = workload(WEB);
    params.not_after = (SystemTime::now() + Duration::from_secs(seconds)).into();
    let minted = root.mint(&params);
    let svid = [
        field(1, WEB.as_bytes()),
        field(2, &minted.chain[0]),
        field(3, minted.key.secret_der()),
        field(4, &root.der),
        field(5, b"a hint"),
    ];
    [field(1, &svid.concat()), more.to_vec()].concat()
}

fn why(watch: &IdentityWatch) -> String {
    watch.state(SystemTime::now()).unready().unwrap()
}

async fn story(mut watch: IdentityWatch) {
    watch.changed().await;
    assert!(why(&watch).contains("start the SPIFFE agent"), "{}", why(&watch));

    let mut server = Server::start();
    server.tell("PERMISSION_DENIED");
    watch.changed().await;
    assert!(why(&watch).contains("no identity is registered"), "{}", why(&watch));
    server.hear("called");

    let root = Root::new("root");
    server.send(&response(&root, 1000, &[]));
    watch.changed().await;
    assert_eq!(watch.state(SystemTime::now()), State::Valid);
    let before = watch.current().unwrap();
    assert_eq!(before.id().as_str(), WEB);

    // A rotation, with federated bundles and lists beyond one window of HTTP/2.
    let bundle: Vec<u8> = (0..300).flat_map(|n| Root::new(&n.to_string()).der.to_vec()).collect();
    let federated = field(3, &[field(1, b"spiffe://other"), field(2, &bundle)].concat());
    let peer = root.mint(&workload(WEB));
    let list = field(2, &root.revoke(&peer.chain).0);
    server.send(&response(&root, 2000, &[federated, list].concat()));
    watch.changed().await;
    let after = watch.current().unwrap();
    assert!(after.not_after() > before.not_after() && after.revoked(&peer.chain));
    assert_eq!(after.trust().domains().collect::<Vec<_>>(), ["other", "td"]);

    // What cannot be used changes nothing, and the call goes on.
    server.send(b"no message");
    watch.changed().await;
    server.send(&response(&root, 3000, &[]));
    watch.changed().await;
    assert!(watch.current().unwrap().not_after() > after.not_after());

    // The end of the call and of the agent: called again, the identity stays.
    server.tell("end");
    watch.changed().await;
    server.hear("called");
    drop(server);
    watch.changed().await;
    assert_eq!(watch.state(SystemTime::now()), State::Valid);
    let mut server = Server::start();
    server.send(&response(&root, 4000, &[]));
    let before = watch.current().unwrap().not_after();
    while watch.current().unwrap().not_after() == before {
        watch.changed().await;
    }
}

#[test]
fn a_real_grpc_server_is_followed_through_denial_rotation_nonsense_and_restart() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = Server::folder().join("api.sock");
    let source = config::Identity { workload_api: Some(socket), ..config::Identity::default() };
    let (publisher, watch) = Publisher::new();
    runtime.block_on(async {
        tokio::select! {
            never = Source::of(&source).unwrap().run(publisher) => match never {},
            outcome = tokio::time::timeout(Duration::from_secs(60), story(watch)) => outcome.expect("in time"),
        }
    });
}
