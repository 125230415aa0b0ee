//! The sidecar is two processes: one that holds what must outlive a crash, and one without privileges that carries
//! connections. What becomes of both when one of them dies, hangs or is told something.

#[path = "supervisor/death.rs"]
mod death;
#[path = "supervisor/end.rs"]
mod end;
#[path = "supervisor/hang.rs"]
mod hang;
#[path = "supervisor/kept.rs"]
mod kept;
#[path = "supervisor/privileges.rs"]
mod privileges;
#[path = "supervisor/stage.rs"]
mod stage;
