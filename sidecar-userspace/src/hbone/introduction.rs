//! What the sidecar says of its own pod. It stands apart from the header's syntax, which knows no configuration.

use http::HeaderValue;

use super::baggage::{Baggage, Kind};
use crate::config;

impl Baggage {
    /// What this pod says about itself, as a header; `None`: nothing is known.
    pub fn of(pod: &config::Pod) -> Option<HeaderValue> {
        let unnamed = config::Pod::default();
        let known = |name: &String, unnamed: &String| (name != unnamed).then(|| name.clone());
        let (namespace, workload) =
            (known(&pod.namespace, &unnamed.namespace), known(&pod.workload, &unnamed.workload));
        let baggage = Self {
            namespace,
            service: workload.clone(),
            // What kind it is nobody said; Istio's workload API takes it for a deployment then.
            workload: workload.map(|name| (Kind::Deployment, name)),
            ..Self::default()
        };
        if baggage == Self::default() { None } else { HeaderValue::try_from(baggage.to_string()).ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_says_what_is_known_of_it() {
        let of = |workload: &str, namespace: &str| {
            let pod = config::Pod { workload: workload.into(), namespace: namespace.into(), ..config::Pod::default() };
            Baggage::of(&pod).map(|header| header.to_str().unwrap().to_owned())
        };
        let whole = "k8s.namespace.name=shop,k8s.deployment.name=web%20a,service.name=web%20a";
        assert_eq!(of("web a", "shop").as_deref(), Some(whole));
        assert_eq!(of("unknown", "shop").as_deref(), Some("k8s.namespace.name=shop"));
        assert_eq!(of("unknown", "unknown"), None);
    }
}
