//! Families of candle's kernels: how each is launched, and what it ought to compute.

mod conv;
mod family;
mod indexing;
mod number;
mod pointwise;
mod quantized;
mod quants;
mod reduce;
mod rows;
mod simple;
mod special;
mod unary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use family::Family;

const VERSION: &str = "0.11.1";

/// Module and what runs its kernels; the longest first.
#[allow(clippy::type_complexity)]
pub const FAMILIES: &[(&str, fn(&mut Family))] = &[
    ("quantized", quantized::quantized),
    ("indexing", indexing::indexing),
    ("conv", conv::conv),
    ("binary", pointwise::binary),
    ("unary", unary::unary),
    ("reduce", |family| {
        reduce::reduce(family);
        rows::rows(family);
    }),
    ("sort", reduce::sort),
    ("cast", simple::cast),
    ("ternary", simple::ternary),
    ("fill", simple::fill),
    ("affine", pointwise::affine),
];

/// The PTX files by module; `None`, and a line that says so, if there are none.
pub fn modules() -> Option<BTreeMap<String, PathBuf>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let folder = workspace.join(".tools/candle-kernels/ptx");
    let found: BTreeMap<String, PathBuf> = (std::fs::read_dir(folder).into_iter().flatten())
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?;
            let name = name.strip_prefix(VERSION)?.strip_prefix('-')?.strip_suffix(".ptx")?;
            Some((name.to_owned(), path))
        })
        .collect();
    if found.len() < super::MODULES {
        eprintln!("skipped: no candle-kernels (`cargo xtask candle-kernels` compiles them)");
        return None;
    }
    Some(found)
}
