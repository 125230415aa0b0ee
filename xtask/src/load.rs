//! Clients and servers that the demo and the bench run inside their pods, as processes of their own: a socket belongs
//! for life to the cgroup of the process that made it, so a thread of xtask could not stand for an application.
//!
//! What a client measures it prints as one line of JSON.

pub(crate) mod answer;
pub(crate) mod bulk;
pub(crate) mod churn;
mod clock;
mod connect;
pub(crate) mod cpu;
mod echo;
mod hold;
pub(crate) mod http;
pub(crate) mod latency;
pub(crate) mod probe;
mod round_trip;
pub(crate) mod serve;
pub(crate) mod steady;

pub(crate) use clock::now_us;

use anyhow::Result;

/// What a client or server prints once others may rely on it.
pub(crate) const READY: &str = "ready";

/// Arguments of `load`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    /// HTTP requests, each on a connection of its own, until killed
    Http(http::Args),
    /// The bench's servers, until killed
    Serve(serve::Args),
    /// Requests on connections that stay open
    RoundTrip(round_trip::Args),
    /// Requests on connections of their own
    Connect(connect::Args),
    /// Connections made and ended in every way, at a given rate
    Churn(churn::Args),
    /// Requests at a steady rate and streams that stay open, until killed
    Steady(steady::Args),
    /// One stream
    Bulk(bulk::Args),
    /// Idle connections, until killed
    Hold(hold::Args),
    /// The application of a pod among many, until killed
    Answer(answer::AnswerArgs),
    /// Questions to such an application
    Ask(answer::AskArgs),
    /// Whether connections are captured, until they are as asked
    Probe(probe::Args),
}

/// Does the task.
pub(crate) fn run(args: Args) -> Result<()> {
    match args.task {
        Task::Http(args) => http::run(&args),
        Task::Serve(args) => serve::run(&args),
        Task::RoundTrip(args) => round_trip::run(&args),
        Task::Connect(args) => connect::run(&args),
        Task::Churn(args) => churn::run(&args),
        Task::Steady(args) => steady::run(&args),
        Task::Bulk(args) => bulk::run(&args),
        Task::Hold(args) => hold::run(&args),
        Task::Answer(args) => answer::answer(&args),
        Task::Ask(args) => answer::ask(&args),
        Task::Probe(args) => probe::run(&args),
    }
}
