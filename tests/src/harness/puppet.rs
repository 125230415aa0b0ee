//! The test's end of an application that follows orders.

use std::{
    net::SocketAddr,
    os::{fd::AsRawFd, unix::net::UnixListener},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{PATIENCE, Pod, Process, patient, sidecar::built_beside};
use crate::agent::{
    puppet::{Answer, Handle, Order, meeting_point},
    sys::send_descriptor,
};

/// An application that does what a test tells it.
#[derive(Debug)]
pub struct Puppet {
    process: Process,
    answers: usize,
    sockets: Handle,
}

impl Puppet {
    /// Starts one as an application of `pod`.
    pub fn start(pod: &Pod) -> Result<Self> {
        Ok(Self::of(pod.spawn(Self::command()?)?))
    }

    /// Starts one that answers at `at` whatever it is sent.
    pub fn serving(pod: &Pod, at: SocketAddr) -> Result<Self> {
        let mut puppet = Self::start(pod)?;
        puppet.serve(at)?;
        Ok(puppet)
    }

    /// The command that runs one, for other places than an application's.
    pub fn command() -> Result<Command> {
        let mut command = Command::new(built_beside("agent")?);
        command.arg("puppet");
        Ok(command)
    }

    /// One that has been started with [`Self::command`].
    pub fn of(process: Process) -> Self {
        Self { process, answers: 0, sockets: 0 }
    }

    /// Gives an order and waits for its answer.
    pub fn order(&mut self, order: Order) -> Result<Answer> {
        self.begin(order)?;
        self.answer(patient(PATIENCE)).with_context(|| format!("{order:?}"))
    }

    /// Gives an order. Its answer must be asked for before the next one.
    pub fn begin(&mut self, order: Order) -> Result<()> {
        let said = self.process.say(&serde_json::to_string(&order)?);
        said.with_context(|| format!("{order:?}{}", self.process.output()))
    }

    /// Waits for the answer to the last order.
    pub fn answer(&mut self, limit: Duration) -> Result<Answer> {
        let nth = self.answers;
        self.answers += 1;
        let line = self.process.out.wait_for(limit, |lines| lines.get(nth).cloned());
        let line = line.with_context(|| format!("no answer{}", self.process.output()))?;
        serde_json::from_str(&line).with_context(|| format!("not an answer: {line}"))
    }

    /// Gives it a socket.
    pub fn adopt(&mut self, pod: &Pod, socket: &impl AsRawFd) -> Result<Handle> {
        let number = self.process.pid().as_raw().cast_unsigned();
        let listener = pod.netns().run(|| UnixListener::bind_addr(&meeting_point(number)?))??;
        self.begin(Order::Adopt(number))?;
        send_descriptor(&listener.accept()?.0, socket)?;
        let answer = self.answer(PATIENCE)?;
        ensure!(answer.outcome == "ok", "take a socket: {}", answer.outcome);
        self.sockets += 1;
        Ok(self.sockets - 1)
    }

    /// Gives an order that must succeed.
    pub fn must(&mut self, order: Order) -> Result<Answer> {
        let answer = self.order(order)?;
        ensure!(answer.outcome == "ok", "{order:?}: {}", answer.outcome);
        Ok(answer)
    }

    /// Listens at `at` and answers every connection with what it sends.
    pub fn serve(&mut self, at: SocketAddr) -> Result<()> {
        self.must(Order::Serve(at)).map(drop)
    }

    /// Listens at `at`, greets every connection and answers it with what it sends.
    pub fn greet(&mut self, at: SocketAddr) -> Result<()> {
        self.must(Order::Greet(at)).map(drop)
    }

    /// Makes a socket that can be connected to addresses like `like`.
    pub fn make(&mut self, like: SocketAddr) -> Result<Handle> {
        self.must(Order::Make(like))?;
        self.sockets += 1;
        Ok(self.sockets - 1)
    }

    /// The same, an MPTCP socket.
    pub fn make_multipath(&mut self, like: SocketAddr) -> Result<Handle> {
        self.must(Order::MakeMultipath(like))?;
        self.sockets += 1;
        Ok(self.sockets - 1)
    }

    /// Tries to connect a new socket.
    pub fn try_open(&mut self, to: SocketAddr) -> Result<(Handle, Answer)> {
        let socket = self.make(to)?;
        Ok((socket, self.order(Order::Connect(socket, to))?))
    }

    /// Connects a new socket; also says its local address.
    pub fn open(&mut self, to: SocketAddr) -> Result<(Handle, SocketAddr)> {
        let (socket, answer) = self.try_open(to)?;
        ensure!(answer.outcome == "ok", "connect to {to}: {}", answer.outcome);
        Ok((socket, answer.local.context("a connected socket without an address")?))
    }

    /// How a connection to where nobody answers ends. The reset of a sidecar that was refused may come before or after
    /// the call that connects returns: that is for the scheduler to decide.
    pub fn end_of(&mut self, to: SocketAddr) -> Result<String> {
        let (socket, answer) = self.try_open(to)?;
        if answer.outcome == "ok" { Ok(self.order(Order::AwaitEnd(socket))?.outcome) } else { Ok(answer.outcome) }
    }

    /// Sends bytes and expects them back.
    pub fn echo(&mut self, socket: Handle) -> Result<()> {
        self.must(Order::Echo(socket, 1000)).map(drop)
    }

    /// Connects, exchanges bytes and closes; says the local address it had.
    pub fn visit(&mut self, to: SocketAddr) -> Result<SocketAddr> {
        let (socket, local) = self.open(to)?;
        self.echo(socket)?;
        self.must(Order::Close(socket))?;
        Ok(local)
    }

    /// Who has connected to what it serves, in order.
    pub fn accepted(&mut self) -> Result<Vec<SocketAddr>> {
        Ok(self.must(Order::Accepted)?.accepted)
    }

    /// Has it end by itself, and waits for that.
    pub fn leave(mut self) -> Result<()> {
        self.process.close_stdin();
        self.process.finish(PATIENCE).map(drop)
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}
