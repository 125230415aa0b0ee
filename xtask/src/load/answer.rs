//! The small application of a pod among many: it says who it is to whoever asks, and asks a neighbour.

use super::READY;
use crate::interrupt;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Where it answers.
pub(crate) const PORT: u16 = 7010;

/// A thousand pods on two cores answer late, but they answer.
const LIMIT: Duration = Duration::from_secs(20);

/// Arguments of `load answer`.
#[derive(clap::Args)]
pub(crate) struct AnswerArgs {
    /// The address to listen at
    #[arg(long)]
    at: IpAddr,
    /// What it answers with, before what it was asked
    #[arg(long)]
    name: String,
}

/// Answers every line with its own name and that line, until it is killed.
pub(crate) fn answer(args: &AnswerArgs) -> Result<()> {
    let listener = TcpListener::bind((args.at, PORT)).with_context(|| format!("listen at {}:{PORT}", args.at))?;
    println!("{READY}");
    for stream in listener.incoming() {
        // Whoever asked reports what a connection that fails here does to it.
        let _ = reply(&stream.context("accept")?, &args.name);
    }
    bail!("the listener ended")
}

fn reply(stream: &TcpStream, name: &str) -> Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut question = String::new();
    BufReader::new(stream).read_line(&mut question)?;
    let mut writer = stream;
    Ok(writer.write_all(format!("{name} {question}").as_bytes())?)
}

/// Arguments of `load ask`.
#[derive(clap::Args)]
pub(crate) struct AskArgs {
    /// Where a neighbour answers
    #[arg(long)]
    to: SocketAddr,
    /// The own name, part of every question
    #[arg(long)]
    name: String,
    /// The neighbour's name, which every answer must begin with
    #[arg(long)]
    expect: String,
    /// How many questions at the most, each on a connection of its own; SIGTERM ends them sooner
    #[arg(long)]
    requests: u32,
    /// Milliseconds between the beginnings of two
    #[arg(long, default_value_t = 0)]
    every: u64,
}

/// What came of it.
#[derive(Serialize, Deserialize, Default)]
pub(crate) struct Asked {
    /// Answered, by whom it should be and to what was asked.
    pub(crate) answered: u32,
    /// Without an answer.
    pub(crate) failed: u32,
    /// Of these, refused before anything was sent (ECONNREFUSED).
    pub(crate) refused: u32,
    /// Of these, after one that was answered.
    pub(crate) late: u32,
    /// With another answer: bytes of another connection.
    pub(crate) wrong: u32,
    /// The slowest answer, in milliseconds.
    pub(crate) slowest: f64,
    /// The longest time between the ends of two answered ones, in milliseconds.
    pub(crate) gap: f64,
    /// The first thing that went wrong.
    pub(crate) fault: Option<String>,
}

/// Asks and reports.
pub(crate) fn ask(args: &AskArgs) -> Result<()> {
    let _caught = interrupt::catch()?;
    let mut asked = Asked::default();
    let begin = Instant::now();
    let mut answered = begin;
    for number in 0..args.requests {
        let due = begin + Duration::from_millis(args.every) * number;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if interrupt::check().is_err() {
            break;
        }
        let start = Instant::now();
        match exchange(args, number) {
            Ok(true) => {
                asked.answered += 1;
                asked.slowest = asked.slowest.max(start.elapsed().as_secs_f64() * 1000.0);
                asked.gap = asked.gap.max(answered.elapsed().as_secs_f64() * 1000.0);
                answered = Instant::now();
            }
            Ok(false) => asked.wrong += 1,
            Err(error) => {
                asked.failed += 1;
                asked.late += u32::from(asked.answered > 0);
                if refused(&error) {
                    asked.refused += 1;
                    asked.fault.get_or_insert_with(|| format!("{error:#}"));
                } else if asked.failed == asked.refused + 1 {
                    // Worse than the refusals before it.
                    asked.fault = Some(format!("{error:#}"));
                }
            }
        }
    }
    println!("{}", serde_json::to_string(&asked)?);
    Ok(())
}

fn refused(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Whether the answer is the right one.
fn exchange(args: &AskArgs, number: u32) -> Result<bool> {
    let mut stream = TcpStream::connect_timeout(&args.to, LIMIT).with_context(|| format!("connect to {}", args.to))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let question = format!("{} asks {} number {number}\n", args.name, args.expect);
    stream.write_all(question.as_bytes()).context("send the question")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("receive the answer")?;
    ensure!(!answer.is_empty(), "the connection ended before the answer");
    Ok(answer == format!("{} {question}", args.expect))
}
