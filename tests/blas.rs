//! A BLAS of the caller's takes the large products, and results are the reference's.

use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::process::Command;

use gradroute::cpu::{Cpu, use_blas};
use gradroute::ops::{Backend, LayerOutputs, LinearInputs, Options, ParamGrad};
use gradroute::problem::{Linear, Rows};
use gradroute::reference;

/// Compiles `fixtures/blas.rs`, the textbook's loops behind BLAS' interface.
fn library(folder: &Path) -> PathBuf {
    let name = format!("{}blas{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let (source, out) = (Path::new("tests/fixtures/blas.rs"), folder.join(name));
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition=2024", "--crate-type=cdylib", "-O", "-o"]).arg(&out).arg(source);
    assert!(command.status().unwrap().success(), "{command:?}");
    out
}

/// Multiples of 1/4, so that every order of summation gives the same bits.
fn numbers(len: usize, step: usize) -> Vec<f32> {
    (0..len).map(|at| ((at * step + at / 7) % 9) as f32 / 4.0 - 1.0).collect()
}

#[test]
fn products_are_by_the_library_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = library(folder.path());
    // SAFETY: the fixture has the interface.
    unsafe { use_blas(&path) }.unwrap();
    // SAFETY: as above; it is loaded already.
    let again = unsafe { use_blas(&path) }.unwrap_err().to_string();
    assert!(again.contains("in use already"), "{again}");
    // SAFETY: the same file, and the fixture's own function.
    let calls = unsafe {
        let loaded = libloading::Library::new(&path).unwrap();
        *loaded.get::<extern "C" fn() -> c_int>(b"calls").unwrap()
    };

    // Formed and factored gradients; extents of one; a layer that nothing reads.
    for (samples, rows, inputs, outputs) in
        [(3, 70, 40, 24), (90, 1, 64, 48), (2, 5, 1, 7), (2, 3, 9, 1), (1, 1, 1, 1), (4, 6, 8, 0)]
    {
        let layer = Linear::new(Rows::uniform(samples, rows).unwrap(), inputs, outputs).unwrap();
        let x = numbers(samples * rows * inputs, 5);
        let dy = numbers(samples * rows * outputs, 7);
        let weight = numbers(inputs * outputs, 4);
        let options = Options::default();
        let given = LinearInputs { x: &x, dy: &dy, weight: Some(&weight) };
        let expected = reference::linear(&layer, &options, given).unwrap();
        let (mut dx, mut dw) = (vec![f32::NAN; x.len()], vec![f32::NAN; weight.len()]);
        let out = LayerOutputs { dw: Some(ParamGrad::F32(&mut dw)), ..LayerOutputs::default() };
        let before = calls();
        Cpu::new().linear(&layer, &options, given, Some(&mut dx), out).unwrap();
        let wide = |all: &[f32]| all.iter().map(|&it| f64::from(it)).collect::<Vec<_>>();
        let what = format!("{samples} {rows} {inputs} {outputs}");
        assert_eq!(wide(&dw), expected.dw, "dw, {what}");
        assert_eq!(wide(&dx), expected.dx, "dx, {what}");
        assert!(outputs == 0 || calls() > before, "not asked, {what}");
    }
}
