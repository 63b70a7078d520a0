//! What the op tests share: cases of every op, a way to run one on any backend, an oracle that
//! shares no code with the crate's own reference, and comparisons that say where it went wrong.
#![allow(dead_code)] // each test target uses a part

pub mod case;
pub mod catalogue;
pub mod compare;
pub mod oracle;
pub mod run;
pub mod weights;
