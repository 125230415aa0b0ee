//! The sidecar's own log on standard error: structured, with a level that can be changed while it runs.

mod stderr;

use std::io;

use tracing::{Dispatch, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::ParseError,
    fmt,
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::{SubscriberInitExt, TryInitError},
};

use crate::config::{LogFormat, Telemetry};

use stderr::Unblocked;
pub(super) use stderr::lost;

/// Why the log cannot start, or its level cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directive is neither a level nor `target=level`. The filter would take the word for the name of a module.
    #[error("`{directive}` is not a log level: use off, error, warn, info, debug or trace, or `module=level`")]
    NotALevel {
        /// What was given.
        directive: String,
    },
    /// The filter does not understand a directive.
    #[error("log filter `{directives}`: {source}")]
    Directives {
        /// What was given.
        directives: String,
        /// Why not.
        source: ParseError,
    },
    /// The process logs elsewhere already.
    #[error("this process has a log already: {0}")]
    Installed(#[from] TryInitError),
    /// The subscriber is gone.
    #[error("the log is not running any more: {0}")]
    Gone(#[from] reload::Error),
}

/// Changes and tells the level of a running log. Clones change the same log.
#[derive(Clone)]
pub struct LogControl(reload::Handle<EnvFilter, Registry>);

impl LogControl {
    /// Obeys `directives` (`info`, `debug,sidecar::relay=trace`) from now on; on error the old ones stay.
    ///
    /// # Errors
    /// A directive is not understood.
    pub fn set(&self, directives: &str) -> Result<(), Error> {
        self.0.reload(parse(directives)?)?;
        // Records of the `log` crate are stopped before they reach the filter, by a level of their own.
        log::set_max_level(as_log(LevelFilter::current()));
        Ok(())
    }

    /// The directives that are obeyed now.
    pub fn current(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_else(|error| error.to_string())
    }
}

/// Makes `tracing` events and records of the `log` crate (what the eBPF programs say) go to standard error.
///
/// # Errors
/// The configured level is not understood, or this process has a log already.
pub fn init(config: &Telemetry) -> Result<LogControl, Error> {
    let (subscriber, control) = subscriber(config, || Unblocked(io::stderr()))?;
    subscriber.try_init()?;
    Ok(control)
}

fn subscriber<W>(config: &Telemetry, output: W) -> Result<(Dispatch, LogControl), Error>
where
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse(&config.log_level)?);
    let registry = tracing_subscriber::registry().with(filter).with(lines(config.log_format, output));
    Ok((registry.into(), LogControl(handle)))
}

fn lines<S, W>(format: LogFormat, output: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_ansi(false).with_writer(output);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

fn parse(directives: &str) -> Result<EnvFilter, Error> {
    for directive in directives.split(',').map(str::trim) {
        // The empty word parses as a level.
        if directive.is_empty() || !directive.contains('=') && directive.parse::<LevelFilter>().is_err() {
            return Err(Error::NotALevel { directive: directive.to_owned() });
        }
    }
    EnvFilter::try_new(directives).map_err(|source| Error::Directives { directives: directives.to_owned(), source })
}

fn as_log(level: LevelFilter) -> log::LevelFilter {
    match level {
        LevelFilter::OFF => log::LevelFilter::Off,
        LevelFilter::ERROR => log::LevelFilter::Error,
        LevelFilter::WARN => log::LevelFilter::Warn,
        LevelFilter::INFO => log::LevelFilter::Info,
        LevelFilter::DEBUG => log::LevelFilter::Debug,
        LevelFilter::TRACE => log::LevelFilter::Trace,
    }
}

#[cfg(test)]
mod tests;
