//! `sidecar config …`: check, show and describe the configuration without running.

use std::{path::PathBuf, process::ExitCode};

use super::answer::{DONE, FAILED, faulty, say};
use crate::config::{self, Faults, Loaded, Sources};

/// Flags that say where the configuration comes from.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SourceArgs {
    /// Configuration file; without it every key has its default.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key, such as `capture.on_failure=closed`; beats the environment and the file. Can be given repeatedly.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl SourceArgs {
    /// These flags together with the environment of this process.
    pub fn sources(&self) -> Sources {
        Sources::of_process(self.config.clone(), self.set.clone())
    }
}

/// Check, show and describe the configuration.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Report everything that is wrong with the configuration; exit code 2 if anything is.
    Validate(#[command(flatten)] SourceArgs),
    /// Print the value of every key as a sidecar started here would use it.
    Show(ShowArgs),
    /// Print the JSON Schema of the configuration file.
    Schema,
}

/// Arguments of `sidecar config show`.
#[derive(Clone, Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    sources: SourceArgs,
    /// Say for each value where it came from: a place in the file, a variable, a flag or the default.
    #[arg(long)]
    origin: bool,
    /// Format of the output.
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    output: Format,
}

/// Formats of `sidecar config show`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// As a configuration file.
    Yaml,
    /// As one JSON object.
    Json,
}

/// Runs the command. Answers go to standard output, faults to standard error, one per line.
///
/// The exit code is 0, or 2 if the configuration is wrong, or 1 if the answer could not be written.
pub fn run(command: &ConfigCommand) -> ExitCode {
    match answer(command) {
        Ok(text) => say(&text, DONE, FAILED),
        Err(faults) => faulty(&faults),
    }
}

fn answer(command: &ConfigCommand) -> Result<String, Faults> {
    match command {
        ConfigCommand::Validate(args) => config::load(&args.sources()).map(|_| "the configuration is valid\n".into()),
        ConfigCommand::Show(args) => config::load(&args.sources.sources()).map(|loaded| show(&loaded, args)),
        ConfigCommand::Schema => Ok(format!("{:#}\n", config::schema())),
    }
}

fn show(loaded: &Loaded, args: &ShowArgs) -> String {
    match (args.output, args.origin) {
        (Format::Yaml, false) => loaded.to_yaml(),
        (Format::Yaml, true) => loaded.to_yaml_with_origins(),
        (Format::Json, false) => format!("{:#}\n", loaded.to_json()),
        (Format::Json, true) => format!("{:#}\n", loaded.to_json_with_origins()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(subcommand)]
        command: ConfigCommand,
    }

    fn answer_to(args: &[&str]) -> Result<String, String> {
        let cli = Cli::try_parse_from([&["config"], args].concat()).map_err(|error| error.to_string())?;
        answer(&cli.command).map_err(|faults| faults.to_string())
    }

    #[test]
    fn a_valid_configuration_is_shown_with_the_flag_that_won() {
        let shown = answer_to(&["show", "--set", "capture.on_failure=closed", "--origin"]).unwrap();
        assert!(
            shown.lines().any(|line| line.trim_start().starts_with("on_failure: closed")
                && line.ends_with("# --set capture.on_failure")),
            "{shown}"
        );
        let shown = answer_to(&["show", "--set", "capture.on_failure=closed", "-o", "json"]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(json["capture"]["on_failure"], "closed");
    }

    #[test]
    fn validate_tells_every_fault() {
        assert_eq!(answer_to(&["validate"]).unwrap(), "the configuration is valid\n");
        let faults = answer_to(&["validate", "--set", "proxy.worker=1", "--set", "proxy.workers=0"]).unwrap_err();
        assert_eq!(
            faults,
            "--set proxy.worker: unknown key `proxy.worker`; did you mean `workers`?\n\
             --set proxy.workers: proxy.workers: `0` is not allowed; expected a whole number from 1 to 1024"
        );
    }
}
