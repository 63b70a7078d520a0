//! Families of candle's kernels: how each is launched, and what it ought to compute. Launches are those of
//! candle-core; where one of these does what CUDA forbids, [`Family::faults`] says which check finds it.

mod conv;
mod family;
mod indexing;
mod mmq;
mod moe;
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

use crate::common::nvcc::skipped;

const VERSION: &str = "0.11.1";

/// A module and what runs its kernels.
type Runner = (&'static str, fn(&mut Family));

/// The longest first.
pub const FAMILIES: &[Runner] = &[
    ("mmvq_gguf", quantized::mmvq),
    ("mmq_gguf_mmq_instance_q4_0", |family| mmq::products(family, "q4_0")),
    ("mmq_gguf_mmq_instance_q4_1", |family| mmq::products(family, "q4_1")),
    ("mmq_gguf_mmq_instance_q5_0", |family| mmq::products(family, "q5_0")),
    ("mmq_gguf_mmq_instance_q5_1", |family| mmq::products(family, "q5_1")),
    ("mmq_gguf_mmq_instance_q8_0", |family| mmq::products(family, "q8_0")),
    ("mmq_gguf_mmq_instance_q2_k", |family| mmq::products(family, "q2_k")),
    ("mmq_gguf_mmq_instance_q3_k", |family| mmq::products(family, "q3_k")),
    ("mmq_gguf_mmq_instance_q4_k", |family| mmq::products(family, "q4_k")),
    ("mmq_gguf_mmq_instance_q5_k", |family| mmq::products(family, "q5_k")),
    ("mmq_gguf_mmq_instance_q6_k", |family| mmq::products(family, "q6_k")),
    ("mmq_gguf_mmq_quantize", mmq::quantize),
    ("moe_moe_align", moe::align),
    ("moe_moe_gguf", moe::gguf),
    ("moe_moe_wmma", moe::wmma),
    ("moe_moe_wmma_gguf", moe::wmma_gguf),
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
    let missing: Vec<&str> =
        FAMILIES.iter().map(|(name, _)| *name).filter(|name| !found.contains_key(*name)).collect();
    // What takes longest to compile is compiled by `cargo xtask candle-kernels` only.
    if missing.iter().any(|name| !OPTIONAL.contains(name)) {
        skipped("no candle-kernels (`cargo xtask candle-kernels` compiles them)");
        return None;
    }
    if !missing.is_empty() {
        eprintln!("without {}", missing.join(", "));
    }
    Some(found)
}

/// Modules that the tests go without when they are not compiled.
const OPTIONAL: [&str; 8] = [
    "mmq_gguf_mmq_instance_q2_k",
    "mmq_gguf_mmq_instance_q3_k",
    "mmq_gguf_mmq_instance_q4_1",
    "mmq_gguf_mmq_instance_q4_k",
    "mmq_gguf_mmq_instance_q5_0",
    "mmq_gguf_mmq_instance_q5_1",
    "mmq_gguf_mmq_instance_q5_k",
    "mmq_gguf_mmq_instance_q6_k",
];
