//! The shared layouts may be read and written as plain bytes by aya.

use crate::{
    addr::{Endpoint, Ip, PortBe},
    fastpath::{Candidate, Carried, Fields, Leg, Switch, mixed::Mixed},
    flow::{FlowKey, Local, Note, Passed},
    rules::{CaptureRules, Source},
};

macro_rules! plain_bytes {
    ($($layout:ty),* $(,)?) => {$(
        // SAFETY: `repr(C)` or `repr(transparent)` over integers and arrays of them; the size assertions beside each
        // layout leave no room for padding, and every bit pattern is a valid value.
        unsafe impl aya::Pod for $layout {}
    )*};
}
plain_bytes!(
    Ip,
    PortBe,
    Endpoint,
    FlowKey,
    Local,
    Note,
    Passed,
    CaptureRules,
    Source,
    Candidate,
    Carried,
    Fields,
    Leg,
    Switch,
    Mixed
);
