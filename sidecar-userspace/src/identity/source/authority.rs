//! The embedded authority: this sidecar issues its own certificates.

use std::{
    convert::Infallible,
    path::Path,
    time::{Duration, SystemTime},
};

use tokio::time;

use super::{
    BackOff,
    folders::{self, Folders},
    jitter, publish,
};
use crate::{
    config,
    identity::{
        Names, Parts, Publisher, Refused,
        authority::{self, Authority},
    },
};

/// Publishes a certificate of its own at each half life, and whenever the authority's directory changes.
pub(super) async fn run(config: &config::Authority, publisher: &mut Publisher) -> Infallible {
    let files: Vec<_> = authority::FILES.iter().map(|name| config.directory.join(name)).collect();
    let paths: Vec<&Path> = files.iter().map(std::path::PathBuf::as_path).collect();
    let mut back_off = BackOff::new();
    loop {
        let folders = Folders::watch(&paths);
        let print = folders::print(&paths);
        let pause = if publish(publisher, issue(config)) {
            back_off = BackOff::new();
            jitter(config.lifetime / 2)
        } else {
            back_off.next()
        };
        let renew = SystemTime::now() + pause;
        // By the wall clock, which certificates live by; it also goes on while the machine sleeps.
        while let Ok(left) = renew.duration_since(SystemTime::now()) {
            tokio::select! {
                () = time::sleep(left.min(Duration::from_secs(60))) => {}
                () = folders.changed() => if folders::print(&paths) != print { break },
            }
        }
    }
}

fn issue(config: &config::Authority) -> Result<Parts, Refused> {
    let place = config.directory.display().to_string();
    let refused = |error: authority::Error| match error {
        authority::Error::File { path, reason } => Refused::Unreadable { place: path.display().to_string(), reason },
        other => Refused::Unavailable { place: place.clone(), reason: other.to_string() },
    };
    let authority = Authority::open(&config.directory).map_err(refused)?;
    let issued = authority.issue(&config.id, config.lifetime, SystemTime::now()).map_err(refused)?;
    let names = Names {
        chain: format!("{place}: the certificate just issued"),
        key: format!("{place}: the key just made"),
        roots: format!("{place}/{}", authority::ROOTS),
        crls: String::new(),
    };
    let (roots, federated, crls) = (authority.roots().to_vec(), Vec::new(), Vec::new());
    Ok(Parts { chain: vec![issued.certificate], key: issued.key, roots, federated, crls, names })
}
