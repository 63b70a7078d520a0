//! `cuGetProcAddress`: functions by name, in the form that a CUDA version has.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::boundary::{Out, Text, call};
use super::error::{Error, Outcome, Status};

/// Names whose newest form came with a later version than 11.4: the version from which on a plain name means
/// the form. All other names mean their newest form.
const SINCE: [(&str, i32, &str); 14] = [
    ("cuCtxCreate", 13000, "cuCtxCreate_v4"),
    ("cuCtxCreate", 0, "cuCtxCreate_v2"),
    ("cuEventElapsedTime", 12080, "cuEventElapsedTime_v2"),
    ("cuEventElapsedTime", 0, "cuEventElapsedTime"),
    ("cuGraphGetEdges", 12030, "cuGraphGetEdges_v2"),
    ("cuGraphGetEdges", 0, "cuGraphGetEdges"),
    ("cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"),
    ("cuMemAdvise", 12020, "cuMemAdvise_v2"),
    ("cuMemAdvise", 0, "cuMemAdvise"),
    ("cuMemPrefetchAsync", 12020, "cuMemPrefetchAsync_v2"),
    ("cuMemPrefetchAsync", 0, "cuMemPrefetchAsync"),
    ("cuStreamGetCaptureInfo", 12030, "cuStreamGetCaptureInfo_v3"),
    ("cuStreamGetCaptureInfo", 11030, "cuStreamGetCaptureInfo_v2"),
    ("cuStreamGetCaptureInfo", 0, "cuStreamGetCaptureInfo"),
];

fn table() -> &'static HashMap<&'static str, usize> {
    static TABLE: OnceLock<HashMap<&'static str, usize>> = OnceLock::new();
    TABLE.get_or_init(|| super::exported().into_iter().collect())
}

fn find(name: &str, version: i32) -> Option<usize> {
    if let Some((.., form)) = SINCE.iter().find(|(n, since, _)| *n == name && *since <= version) {
        return table().get(form).copied();
    }
    let suffixed = ["_v4", "_v3", "_v2"].map(|suffix| format!("{name}{suffix}"));
    let newest = suffixed.iter().find_map(|form| table().get(form.as_str()));
    newest.or_else(|| table().get(name)).copied()
}

fn look_up(name: Text, function: Out<usize>, version: i32, status: Out<u32>) -> Outcome {
    const FOUND: u32 = 0;
    const MISSING: u32 = 1;
    function.check()?;
    match find(&name.get()?, version) {
        Some(address) => {
            function.set(address)?;
            status.set_if_wanted(FOUND)
        }
        None => {
            function.set(0)?;
            status.set_if_wanted(MISSING)?;
            // Who asks for the status is told by it.
            if status.is_null() { Err(Error::NotFound) } else { Ok(()) }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuGetProcAddress_v2(
    name: Text,
    function: Out<usize>,
    version: i32,
    _flags: u64,
    status: Out<u32>,
) -> Status {
    call("cuGetProcAddress_v2", || look_up(name, function, version, status))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetProcAddress(
    name: Text,
    function: Out<usize>,
    version: i32,
    _flags: u64,
) -> Status {
    call("cuGetProcAddress", || look_up(name, function, version, Out::null()))
}

super::exports![cuGetProcAddress_v2, cuGetProcAddress];
