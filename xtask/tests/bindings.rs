//! `src/cuda/generated.rs` is what bindgen makes of `kernels/include/gradroute.h`.
//!
//! With `GRADROUTE_BLESS=1` the file is written instead of compared. libclang is needed for either:
//! `cargo xtask kernels` fetches one, and `cargo xtask test` points to it.

use std::fs;
use std::path::Path;

use bindgen::callbacks::{DeriveInfo, ParseCallbacks};
use bindgen::{Builder, Formatter};

/// Every struct is plain data: the derive refuses padding.
#[derive(Debug)]
struct PlainData;

impl ParseCallbacks for PlainData {
    fn add_derives(&self, _: &DeriveInfo<'_>) -> Vec<String> {
        ["bytemuck::Pod", "bytemuck::Zeroable"].map(String::from).into()
    }
}

#[test]
fn generated_structs_match_the_header() {
    if let Err(error) = clang_sys::load() {
        assert!(std::env::var_os("LIBCLANG_PATH").is_none(), "a libclang was promised: {error}");
        println!("skipped: no libclang ({error})");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let made = Builder::default()
        .header(root.join("kernels/include/gradroute.h").display().to_string())
        .allowlist_item("Gradroute.*|GRADROUTE_.*")
        .derive_partialeq(true)
        .parse_callbacks(Box::new(PlainData))
        .use_core()
        .disable_header_comment()
        .raw_line("// Made by bindgen from kernels/include/gradroute.h: do not edit.")
        .formatter(Formatter::Rustfmt)
        .rustfmt_configuration_file(Some(root.join("rustfmt.toml").canonicalize().unwrap()))
        .generate()
        .unwrap()
        .to_string();
    let file = root.join("src/cuda/generated.rs");
    if std::env::var("GRADROUTE_BLESS").is_ok_and(|value| value == "1") {
        fs::write(&file, made).unwrap();
        return;
    }
    let committed = fs::read_to_string(&file).unwrap();
    assert_eq!(committed, made, "run again with GRADROUTE_BLESS=1 after a change of the header");
}
