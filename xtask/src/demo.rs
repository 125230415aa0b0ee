//! `cargo xtask demo`: a sidecar at work on real software, told as it happens, every claim checked.

mod connection;
mod nginx;
mod outage;
mod secured;
mod stage;
mod story;
mod traffic;

use crate::{
    build, interrupt,
    setup::{self, Group},
    world::World,
};
use anyhow::{Context, Result};
use stage::Stage;
use std::path::{Path, PathBuf};
use story::Story;

/// Arguments of `demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Show this binary instead of building one
    #[arg(long, value_name = "FILE")]
    sidecar: Option<PathBuf>,
}

/// Sets up, builds, shows, checks, and leaves nothing behind.
pub(crate) fn run(args: Args) -> Result<()> {
    setup::ensure(&[Group::Demo])?;
    let sidecar = match args.sidecar {
        Some(file) => file.canonicalize().with_context(|| format!("--sidecar {}", file.display()))?,
        None => build::sidecar()?,
    };
    let mut story = Story::begin();
    play(&mut story, &sidecar)?;
    story.end()
}

/// The play, and the proof that the stage is empty afterwards.
fn play(story: &mut Story, sidecar: &Path) -> Result<()> {
    let world = World::new("demo")?;
    let traces = world.traces();
    if let Err(err) = acts(story, &world, sidecar) {
        story.broke_off(&err);
    }
    story.chapter("Everything is taken down");
    drop(world);
    let left: Vec<_> = traces.iter().filter(|path| path.exists()).map(|path| path.display().to_string()).collect();
    story.check(left.is_empty(), format!("no process, cgroup, namespace or file is left behind{}", list(&left)));
    Ok(())
}

/// A later act has something to show also when an earlier one failed; without the stage there is none.
fn acts(story: &mut Story, world: &World, sidecar: &Path) -> Result<()> {
    let mut stage = Stage::set(story, world, sidecar)?;
    let acts: [fn(&mut Stage<'_>, &mut Story) -> Result<()>; 10] = [
        connection::direct,
        |stage, story| stage.start_sidecars(story),
        connection::captured,
        connection::alive,
        traffic::measured,
        outage::survived,
        |stage, story| stage.stop_sidecars(story),
        secured::secured,
        |stage, story| stage.stop_sidecars(story),
        connection::direct,
    ];
    for act in acts {
        if let Err(err) = act(&mut stage, story) {
            interrupt::check()?;
            story.broke_off(&err);
        }
    }
    Ok(())
}

fn list(items: &[String]) -> String {
    if items.is_empty() { String::new() } else { format!(": {}", items.join(", ")) }
}
