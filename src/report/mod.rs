//! Reports: one self-contained HTML page with its pictures inside, as the command line and the
//! example write them.
//!
//! ```
//! use gradroute::report::{charts, html};
//!
//! let bar = charts::Bar { name: "down <1>".into(), value: 2.0, deviation: 0.1 };
//! let section = html::section("Moved", "By block.", &charts::bars(&[bar]));
//! let page = html::page("A run", "", &section);
//! assert!(page.contains("<svg") && page.contains("down &lt;1&gt;"));
//! ```

pub mod charts;
pub mod html;
