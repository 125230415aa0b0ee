//! What one workload tells another about itself: the header `baggage` (W3C Baggage) with the keys that ztunnel writes.
//!
//! It is not proof of anything: who the peer is says its certificate.

use std::fmt::{self, Write as _};

/// What a workload says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: Option<String>,
    /// `k8s.namespace.name`
    pub namespace: Option<String>,
    /// `k8s.<kind>.name`: kind (`deployment`, `pod`, `job` or `cronjob`) and name.
    pub workload: Option<(Kind, String)>,
    /// `service.name`
    pub service: Option<String>,
    /// `service.version`
    pub version: Option<String>,
    /// `cloud.region`
    pub region: Option<String>,
    /// `cloud.availability_zone`
    pub zone: Option<String>,
}

/// What kind of workload it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A deployment.
    Deployment,
    /// A pod without an owner.
    Pod,
    /// A job.
    Job,
    /// A cron job.
    CronJob,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Deployment, Self::Pod, Self::Job, Self::CronJob];

    fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::Pod => "k8s.pod.name",
            Self::Job => "k8s.job.name",
            Self::CronJob => "k8s.cronjob.name",
        }
    }
}

/// The longest value that is kept, in bytes: names of Kubernetes are at most 253 long.
const LONGEST: usize = 256;

impl Baggage {
    /// Reads a header. What is not understood is left out: a peer's baggage decides nothing, so it fails nothing.
    pub fn parse(text: &str) -> Self {
        let mut baggage = Self::default();
        for member in text.split(',') {
            // §3.3.1: properties follow the value after a semicolon.
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = member.split_once('=') else { continue };
            let Some(value) = decode(value.trim()) else { continue };
            baggage.set(key.trim(), value);
        }
        baggage
    }

    fn set(&mut self, key: &str, value: String) {
        let place = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service,
            "service.version" => &mut self.version,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => {
                if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.key() == key) {
                    self.workload = Some((kind, value));
                }
                return;
            }
        };
        *place = Some(value);
    }

    /// Keys and values in ztunnel's order.
    fn members(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let workload = self.workload.as_ref().map(|(kind, name)| (kind.key(), name.as_str()));
        let (kind, name) = workload.unzip();
        [
            ("k8s.cluster.name", self.cluster.as_deref()),
            ("k8s.namespace.name", self.namespace.as_deref()),
            (kind.unwrap_or_default(), name),
            ("service.name", self.service.as_deref()),
            ("service.version", self.version.as_deref()),
            ("cloud.region", self.region.as_deref()),
            ("cloud.availability_zone", self.zone.as_deref()),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.members().enumerate() {
            write!(f, "{}{key}=", if index == 0 { "" } else { "," })?;
            encode(value, f)?;
        }
        Ok(())
    }
}

/// Undoes percent-encoding; `None`: too long, or not UTF-8 with nothing but visible characters in it.
fn decode(value: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, after @ ..] = rest {
        if bytes.len() == LONGEST {
            return None;
        }
        rest = after;
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: &u8| (*byte as char).to_digit(16);
                bytes.push((digit(high)? * 16 + digit(low)?) as u8);
                rest = after;
            }
            (b'%', _) => return None,
            _ => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control))
}

/// §3.3.1.3: what is not a baggage-octet is percent-encoded.
fn encode(value: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in value.bytes() {
        match byte {
            b'"' | b',' | b';' | b'\\' | b'%' => write!(f, "%{byte:02X}")?,
            b'!'..=b'~' => f.write_char(byte as char)?,
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ztunnels_baggage_is_read_and_written_alike() {
        let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,\
                    service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
        let baggage = Baggage::parse(text);
        assert_eq!(baggage.cluster.as_deref(), Some("Kubernetes"));
        assert_eq!(baggage.workload, Some((Kind::Deployment, "web".into())));
        assert_eq!(baggage.zone.as_deref(), Some("z1"));
        assert_eq!(baggage.to_string(), text);
        assert_eq!(Baggage::default().to_string(), "");
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        let long = format!("service.name={}", "a".repeat(LONGEST + 1));
        for (text, service) in [
            ("service.name=a%20b;prop=1, other=x", Some("a b")),
            (" service.name = web ", Some("web")),
            ("service.name", None),
            ("service.name=%4", None),
            ("service.name=%zz", None),
            ("service.name=%ff", None),
            ("service.name=a%0Ab", None),
            (&long, None),
        ] {
            let expected = Baggage { service: service.map(Into::into), ..Baggage::default() };
            assert_eq!(Baggage::parse(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}|(service.name|=|,|;|%|[0-9a-f]){0,20}") {
            let _ = Baggage::parse(&text);
        }

        #[test]
        fn what_is_written_is_read(service in "\\PC{1,60}", zone in "\\PC{1,60}") {
            let baggage = Baggage { service: Some(service), zone: Some(zone), ..Baggage::default() };
            prop_assert_eq!(Baggage::parse(&baggage.to_string()), baggage);
        }
    }
}
