//! The linker, for PTX: the texts are joined under one head.

use std::collections::HashSet;
use std::sync::Mutex;

use super::boundary::{In, Out, Text, call};
use super::error::{Error, Outcome, Status};
use super::module::{ErrorLog, sized};
use super::state::{Handle, driver, lock};
use crate::container;

#[derive(Debug)]
pub struct Linker {
    log: ErrorLog,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    texts: Vec<String>,
    /// The result, which the caller reads in place until the linker is destroyed.
    joined: Vec<u8>,
}

/// Joins PTX texts: the first one's head stays, and what others declare and one defines stays once.
fn join(texts: &[String]) -> Result<String, String> {
    let mut joined = String::new();
    let mut defined = HashSet::new();
    for (number, text) in texts.iter().enumerate() {
        let module = crate::ptx::parse(text).map_err(|error| format!("input {number}: {error}"))?;
        let variables = module.variables.iter();
        let names = variables
            .filter(|variable| variable.linkage != "extern")
            .map(|variable| variable.name)
            .chain(module.functions.iter().filter(|f| f.body.is_some()).map(|f| f.name));
        for name in names {
            if !defined.insert(name.to_owned()) {
                return Err(format!("{name} is defined in two inputs"));
            }
        }
        for line in text.lines() {
            // Heads and debug information hold once per module.
            let head = [".version", ".target", ".address_size", ".file", ".loc"];
            let directive = line.trim_start();
            if number > 0 && head.iter().any(|name| directive.starts_with(name)) {
                continue;
            }
            joined.push_str(line);
            joined.push('\n');
        }
    }
    Ok(joined)
}

#[unsafe(no_mangle)]
extern "C" fn cuLinkCreate_v2(
    count: u32,
    options: In<u32>,
    values: In<usize>,
    linker: Out<Handle>,
) -> Status {
    call("cuLinkCreate_v2", || {
        linker.check()?;
        super::context::context()?;
        let log = ErrorLog::of(count, options, values)?;
        linker.set(driver()?.linkers.insert(Linker { log, state: Mutex::default() }))
    })
}

fn add(linker: Handle, kind: u32, data: &[u8]) -> Outcome {
    let driver = driver()?;
    let linker = driver.linkers.get(linker)?;
    const CUBIN: u32 = 0;
    const OBJECT: u32 = 3;
    if kind > OBJECT {
        let what = "only PTX can be linked, not archives or intermediate code";
        eprintln!("softcuda: {what}");
        linker.log.write(what)?;
        return Err(Error::NotSupported);
    }
    match container::ptx(data, driver.architecture.number) {
        Ok(text) => {
            lock(&linker.state).texts.push(text);
            Ok(())
        }
        Err(error) => {
            eprintln!("softcuda: link input refused: {error}");
            linker.log.write(&error.to_string())?;
            Err(if kind == CUBIN { Error::NoBinaryForGpu } else { Error::InvalidImage })
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuLinkAddData_v2(
    linker: Handle,
    kind: u32,
    data: In<u8>,
    bytes: usize,
    _name: Text,
    _count: u32,
    _options: In<u32>,
    _values: In<usize>,
) -> Status {
    call("cuLinkAddData_v2", || add(linker, kind, &sized(data.address(), bytes)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuLinkAddFile_v2(
    linker: Handle,
    kind: u32,
    path: Text,
    _count: u32,
    _options: In<u32>,
    _values: In<usize>,
) -> Status {
    call("cuLinkAddFile_v2", || {
        let data = std::fs::read(path.get()?).map_err(|_| Error::FileNotFound)?;
        add(linker, kind, &data)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLinkComplete(linker: Handle, image: Out<usize>, bytes: Out<usize>) -> Status {
    call("cuLinkComplete", || {
        image.check()?;
        let linker = driver()?.linkers.get(linker)?;
        let mut state = lock(&linker.state);
        match join(&state.texts) {
            Ok(text) => {
                state.joined = text.into_bytes();
                state.joined.push(0);
                image.set(state.joined.as_ptr() as usize)?;
                // The final zero is not counted, but there.
                bytes.set_if_wanted(state.joined.len() - 1)
            }
            Err(what) => {
                eprintln!("softcuda: link: {what}");
                linker.log.write(&what)?;
                Err(Error::InvalidPtx)
            }
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLinkDestroy(linker: Handle) -> Status {
    call("cuLinkDestroy", || driver()?.linkers.remove(linker).map(drop))
}

super::exports![cuLinkCreate_v2, cuLinkAddData_v2, cuLinkAddFile_v2, cuLinkComplete, cuLinkDestroy,];
