//! Launches of plans on the caller's streams and buffers: what they refuse, and who may look on.

#[path = "../device/mod.rs"]
mod device;

mod contents;
mod observer;
mod refused;
mod several;
mod support;
