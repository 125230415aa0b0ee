//! Sockets that are no longer what they were when they were enrolled.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use sidecar_tests::{
    agent::{
        puppet::{Handle, Order},
        sys,
    },
    cases::net::{TO_V4, accept, listen},
    harness::{PATIENCE, Wedge, bpf, eventually, patient},
};
use socket2::Socket;

use super::{
    MIB,
    stage::{ENOUGH, Stage},
};

/// An enrolled connection and a copy of its socket.
fn enrolled(stage: &mut Stage) -> Result<(Handle, SocketAddr, Socket)> {
    let (handle, local) = stage.app.open(TO_V4)?;
    stage.await_enrolled(handle)?;
    let socket = stage.own(local)?;
    Ok((handle, local, socket))
}

/// Its port becomes free, its place in the map does not: another connection with the same ends has nothing of what it sends.
#[test]
fn fastpath_of_a_disconnected_socket_ends_and_never_leads_into_another_connection() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let (first, local, socket) = enrolled(&mut stage)?;
    sys::disconnect(&socket)?;
    let second = stage.app.make(TO_V4)?;
    stage.app.must(Order::Bind(second, (Ipv4Addr::UNSPECIFIED, local.port()).into()))?;
    stage.app.must(Order::Connect(second, TO_V4))?;
    stage.app.must(Order::Stream(second, MIB, 20_000))?;
    // Without which nothing that it sends is judged.
    let reset = socket.take_error()?.and_then(|error| error.raw_os_error());
    ensure!(reset == Some(Errno::ECONNRESET as i32), "{reset:?}");
    let unknown = stage.sidecar.verdict("sk_msg", "tcp", "unknown")?;
    for _ in 0..20 {
        let sent = (&socket).write(b"stray").map_err(|error| error.raw_os_error());
        ensure!(sent == Err(Some(Errno::EPIPE as i32)), "{sent:?}");
        stage.app.must(Order::Stream(second, 20_000, 1000))?;
    }
    ensure!(stage.sidecar.verdict("sk_msg", "tcp", "unknown")? > unknown, "{}", stage.sidecar.verdicts());
    // The same socket again, as another connection, which comes onto the fast path as others do.
    let released = stage.sidecar.verdict("enrol", "released", "released")?;
    stage.app.must(Order::Begin(first, TO_V4))?;
    let before = stage.redirected()?;
    let back = eventually(patient(PATIENCE), || {
        stage.app.must(Order::Stream(first, 2 * MIB, 20_000)).is_ok()
            && stage.redirected().is_ok_and(|messages| messages > before)
    });
    ensure!(back, "{}", stage.sidecar.verdicts());
    ensure!(stage.sidecar.verdict("enrol", "released", "released")? > released, "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Stream(second, MIB, 20_000))?;
    drop(socket);
    for socket in [first, second] {
        stage.app.must(Order::Close(socket))?;
    }
    stage.nothing_is_enrolled()
}

/// A blocking receive on a socket in the map may come back with nothing: the application's end leaves it though it is half closed.
#[test]
fn fastpath_lets_go_of_a_half_closed_connection() -> Result<()> {
    const ANSWER: usize = 200_000;
    let at = SocketAddr::new(TO_V4.ip(), 8090);
    for switched_off in [false, true] {
        let Some(mut stage) = Stage::forced()? else { return Ok(()) };
        let listener = stage.world.server.netns().run(|| listen(at))??;
        let (handle, local) = stage.app.open(at)?;
        let (mut server, _) = accept(&listener)?;
        let before = stage.app.must(Order::Flood(handle, 20_000, ENOUGH))?.moved;
        server.read_exact(&mut vec![0; before as usize])?;
        stage.await_connections(1)?;
        let sent = stage.app.must(Order::Flood(handle, 20_000, ENOUGH))?.moved - before;
        let mut socket = stage.own(local)?;
        socket.shutdown(Shutdown::Write)?;
        let mut all = vec![];
        server.read_to_end(&mut all)?;
        ensure!(all.len() as u64 == sent, "{} of {sent} bytes", all.len());
        let released = stage.sidecar.verdict("enrol", "released", "released")?;
        if switched_off {
            stage.command("off")?;
        } else {
            stage.app.must(Order::Block(handle))?;
        }
        let let_go = || stage.sidecar.verdict("enrol", "released", "released").is_ok_and(|count| count > released);
        ensure!(eventually(patient(PATIENCE), let_go), "{}", stage.sidecar.verdicts());
        ensure!(bpf::map_entries(stage.sidecar.process.pid(), "SENDERS")? == 0, "one is still there");
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let answer = std::thread::spawn(move || server.write_all(&vec![b'a'; ANSWER]));
        let mut got = vec![];
        socket.read_to_end(&mut got)?;
        answer.join().expect("it writes")?;
        ensure!(got.len() == ANSWER && got.iter().all(|byte| *byte == b'a'), "{} bytes", got.len());
    }
    Ok(())
}

/// Each of its messages would be judged and go by TCP all the same. It comes when the proxy has caught up.
#[test]
fn fastpath_leaves_a_stream_on_tcp_while_the_proxy_has_not_received_it() -> Result<()> {
    /// A look may fall on a moment at which the proxy still follows.
    const TRIES: u32 = 5;
    let at = SocketAddr::new(TO_V4.ip(), 8090);
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let listener = stage.world.server.netns().run(|| listen(at))??;
    for _ in 0..TRIES {
        let unread = |stage: &Stage| stage.sidecar.verdict("enrol", "tcp", "unread");
        let before = unread(&stage)?;
        let (handle, _) = stage.app.open(at)?;
        let (mut server, _) = accept(&listener)?;
        let moved = stage.app.must(Order::Accepted)?.moved;
        let sent = stage.app.must(Order::Flood(handle, 65_536, 64 * MIB))?.moved - moved;
        ensure!(sent < 64 * MIB, "nothing held it back");
        let looked = || unread(&stage).is_ok_and(|count| count > before) || stage.connections().is_ok_and(|n| n > 0);
        ensure!(eventually(patient(PATIENCE), looked), "{}", stage.sidecar.verdicts());
        if stage.connections()? == 0 {
            let mut all = vec![0; sent as usize];
            server.read_exact(&mut all)?;
            return stage.await_connections(1);
        }
        stage.app.must(Order::Close(handle))?;
        drop(server);
        stage.await_connections(0)?;
    }
    anyhow::bail!("each of {TRIES} came onto the fast path{}", stage.sidecar.verdicts())
}

/// The one carrier is what [`Stream::rush`] stops.
const ONE_CARRIER: &str = "acceleration: force\nproxy: { workers: 1 }\n";

/// A connection of the application to a server of the test's own, which takes all that it is sent.
struct Stream {
    handle: Handle,
    server: Socket,
    /// Of what the application has sent in all.
    received: u64,
}

impl Stream {
    fn accepted(stage: &mut Stage, handle: Handle, listener: &Socket) -> Result<Self> {
        let received = stage.app.must(Order::Accepted)?.moved;
        let (server, _) = accept(listener)?;
        Ok(Self { handle, server, received })
    }

    /// Sends `bytes` in messages of `piece` bytes, and receives them.
    fn carry(&mut self, stage: &mut Stage, piece: usize, bytes: u64) -> Result<()> {
        let sent = stage.app.must(Order::Flood(self.handle, piece, bytes))?.moved;
        self.catch_up(sent)
    }

    fn catch_up(&mut self, sent: u64) -> Result<()> {
        let mut taken = vec![0; 1 << 20];
        while self.received < sent {
            let came = self.server.read(&mut taken)? as u64;
            ensure!(came > 0, "the end after {} of {sent} bytes", self.received);
            self.received += came;
        }
        Ok(())
    }

    /// Sends more than goes past TCP while the proxy receives nothing.
    fn rush(&mut self, stage: &mut Stage) -> Result<()> {
        let carrier = Wedge::new(stage.sidecar.worker()?, "worker-0")?;
        // So much waits then that the next goes by TCP, and all that follows.
        stage.app.must(Order::Flood(self.handle, 500_000, 500_000))?;
        stage.app.must(Order::Flood(self.handle, 20_000, 100_000))?;
        let sent = stage.app.must(Order::Flood(self.handle, 4000, 400_000))?.moved;
        drop(carrier);
        self.catch_up(sent)
    }

    /// Comes onto the fast path, and loses by it until it is let go.
    fn lose(&mut self, stage: &mut Stage) -> Result<()> {
        self.carry(stage, 20_000, ENOUGH)?;
        stage.await_connections(1)?;
        let mut rushed = Ok(());
        let let_go = eventually(patient(PATIENCE), || {
            rushed = self.rush(stage);
            rushed.is_err() || stage.connections().is_ok_and(|connections| connections == 0)
        });
        rushed?;
        ensure!(let_go, "{}", stage.sidecar.verdicts());
        Ok(())
    }
}

/// Has another connection come onto the fast path, at a look that leaves alone what else there is, and go.
fn another_alone_is_enrolled(stage: &mut Stage) -> Result<()> {
    let enrolled = stage.sidecar.verdict("enrol", "enrolled", "worth")?;
    let (other, _) = stage.app.open(TO_V4)?;
    stage.await_enrolled(other)?;
    ensure!(stage.sidecar.verdict("enrol", "enrolled", "worth")? == enrolled + 1, "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Close(other))?;
    stage.await_connections(0)
}

/// What is sent as fast as it goes to a proxy that does not follow is judged for nothing: something by TCP is always unread before it.
/// It must carry much more to come back than another to come.
#[test]
fn fastpath_lets_go_of_a_stream_that_never_comes_past_tcp() -> Result<()> {
    let at = SocketAddr::new(TO_V4.ip(), 8090);
    let Some(mut stage) = Stage::with(ONE_CARRIER)? else { return Ok(()) };
    let listener = stage.world.server.netns().run(|| listen(at))??;
    let (handle, _) = stage.app.open(at)?;
    let mut stream = Stream::accepted(&mut stage, handle, &listener)?;
    stream.lose(&mut stage)?;
    let quiet = stage.redirected()?;
    // Nothing is unread any more: each of these could go past TCP.
    for _ in 0..4 {
        stream.carry(&mut stage, 100_000, 100_000)?;
    }
    another_alone_is_enrolled(&mut stage)?;
    let before = stage.redirected()?;
    stream.carry(&mut stage, 100_000, 100_000)?;
    ensure!(quiet > 0 && stage.redirected()? == before, "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Finish(handle))?;
    ensure!(stream.server.read(&mut [0])? == 0, "more than was sent");
    Ok(())
}

/// Whatever the one before has carried and lost: it is told by its ends, or, where a port that the application chose has the
/// same two meet again, by the bytes that it has carried, which are fewer at the next look.
#[test]
fn fastpath_takes_another_connection_of_a_socket_that_it_let_go_as_it_takes_any() -> Result<()> {
    let at = SocketAddr::new(TO_V4.ip(), 8090);
    for port in [None, Some(20_100)] {
        let Some(mut stage) = Stage::with(ONE_CARRIER)? else { return Ok(()) };
        let listener = stage.world.server.netns().run(|| listen(at))??;
        let handle = stage.app.make(at)?;
        if let Some(port) = port {
            stage.app.must(Order::Bind(handle, (Ipv4Addr::UNSPECIFIED, port).into()))?;
        }
        let local = stage.app.must(Order::Connect(handle, at))?.local.context("a local address")?;
        let socket = stage.own(local)?;
        Stream::accepted(&mut stage, handle, &listener)?.lose(&mut stage)?;
        sys::disconnect(&socket)?;
        stage.app.must(Order::Begin(handle, at))?;
        let mut stream = Stream::accepted(&mut stage, handle, &listener)?;
        let again = socket.local_addr()?.as_socket().context("a local address")?;
        ensure!((again.port() == local.port()) == port.is_some(), "{local}, then {again}");
        stream.carry(&mut stage, 1000, 1000)?;
        another_alone_is_enrolled(&mut stage)?;
        stream.carry(&mut stage, 20_000, ENOUGH)?;
        stage.await_connections(1)?;
    }
    Ok(())
}
