//! The driver through unmodified cudarc: every test runs in a child process, started by the `softcuda`
//! runner, so that cudarc finds the driver as any program would.

#![allow(unsafe_code)] // cudarc's calls are

mod context;
mod copies;
mod errors;
mod graphs;
mod kernels;
mod launches;
mod modules;
mod raw;
mod streams;

use std::process::{Command, Output};

/// Runs `body` with the driver in place; the child is this very test.
fn with_driver(test: &str, body: impl FnOnce()) {
    if std::env::var_os("SOFTCUDA").is_some() {
        return body();
    }
    let output = child(test, &[]);
    assert_passed(&output);
}

/// Runs a test as a child under the driver, with variables of its own.
fn child(test: &str, variables: &[(&str, &str)]) -> Output {
    let program = std::env::current_exe().expect("this test");
    Command::new(env!("CARGO_BIN_EXE_softcuda"))
        .arg("--")
        .arg(program)
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .envs(variables.iter().copied())
        .output()
        .expect("the runner starts")
}

/// That the child passed, and that there was a test in it.
fn assert_passed(output: &Output) {
    let text = text(output);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn text(output: &Output) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    part(&output.stdout) + &part(&output.stderr)
}

/// True in a child that a test started for what it looks at from outside.
fn is_child() -> bool {
    std::env::var_os("SOFTCUDA").is_some()
}
