//! Graphs: captured work, made executable and launched as one.

use std::sync::{Arc, Mutex};

use super::boundary::{In, Out, call};
use super::error::{Error, Outcome, Status};
use super::state::{Handle, driver, lock};
use super::stream::stream;
use super::work::Work;

const AUTO_FREE: u64 = 1;
const UPLOAD: u64 = 2;
const DEVICE_LAUNCH: u64 = 4;
const NODE_PRIORITY: u64 = 8;

/// Nodes in the order they were made, each behind those it depends on.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: Mutex<Vec<Node>>,
    memory: Arc<GraphMemory>,
}

/// Memory that nodes allocate: it stays, at the same addresses, as long as graph or executable.
#[derive(Debug, Default)]
struct GraphMemory(Mutex<Vec<u64>>);

impl Drop for GraphMemory {
    fn drop(&mut self) {
        for address in lock(&self.0).drain(..) {
            // At the process's end there may be nothing left to free.
            let _ = super::memory::release(address);
        }
    }
}

#[derive(Debug, Clone)]
struct Node {
    work: Work,
    after: Vec<usize>,
}

impl Graph {
    /// A new node behind others; its number.
    pub fn add(&self, work: Work, after: Vec<usize>) -> usize {
        let mut nodes = lock(&self.nodes);
        let mut memory = lock(&self.memory.0);
        let work = match work {
            Work::Free(address) if memory.contains(&address) => Work::Return,
            Work::Allocate(address) => {
                memory.push(address);
                work
            }
            other => other,
        };
        nodes.push(Node { work, after });
        nodes.len() - 1
    }

    /// True if every node is one of `tail` or before one.
    pub fn all_before(&self, tail: &[usize]) -> bool {
        let nodes = lock(&self.nodes);
        let mut reached = vec![false; nodes.len()];
        let mut next = tail.to_vec();
        while let Some(node) = next.pop() {
            if !std::mem::replace(&mut reached[node], true) {
                next.extend(&nodes[node].after);
            }
        }
        reached.into_iter().all(|reached| reached)
    }

    /// A graph with the nodes of another.
    pub fn take(other: &Graph) -> Self {
        Self { nodes: Mutex::new(lock(&other.nodes).clone()), memory: other.memory.clone() }
    }

    fn length(&self) -> usize {
        lock(&self.nodes).len()
    }

    fn roots(&self) -> Vec<usize> {
        let nodes = lock(&self.nodes);
        (0..nodes.len()).filter(|&node| nodes[node].after.is_empty()).collect()
    }

    fn edges(&self) -> Vec<(usize, usize)> {
        let nodes = lock(&self.nodes);
        let after = nodes.iter().enumerate();
        after.flat_map(|(to, node)| node.after.iter().map(move |&from| (from, to))).collect()
    }
}

/// A graph made ready to launch.
#[derive(Debug)]
pub struct Executable {
    steps: Vec<Work>,
    flags: u64,
    /// Held for the steps.
    _memory: Arc<GraphMemory>,
}

impl Executable {
    pub fn steps(&self) -> impl Iterator<Item = &Work> {
        self.steps.iter()
    }
}

/// A node's handle: its graph's, and its number. Graphs' handles are sixteen apart and well below bit 48.
fn node_handle(graph: Handle, node: usize) -> Handle {
    graph | (node + 1) << 48
}

fn instantiate(executable: Out<Handle>, graph: Handle, flags: u64) -> Outcome {
    executable.check()?;
    let driver = driver()?;
    let graph = driver.graphs.get(graph)?;
    let known = AUTO_FREE | UPLOAD | DEVICE_LAUNCH | NODE_PRIORITY;
    let clash = flags & AUTO_FREE != 0 && flags & DEVICE_LAUNCH != 0;
    if flags & !known != 0 || clash {
        return Err(Error::InvalidValue);
    }
    if flags & DEVICE_LAUNCH != 0 {
        eprintln!("softcuda: graphs launched from kernels are not supported");
        return Err(Error::NotSupported);
    }
    // Nodes only ever depend on earlier ones: their order will do.
    let steps = lock(&graph.nodes).iter().map(|node| node.work.clone()).collect();
    let memory = graph.memory.clone();
    executable.set(driver.executables.insert(Executable { steps, flags, _memory: memory }))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphCreate(graph: Out<Handle>, flags: u32) -> Status {
    call("cuGraphCreate", || {
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        graph.set(driver()?.graphs.insert(Graph::default()))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: Handle) -> Status {
    call("cuGraphDestroy", || driver()?.graphs.remove(graph).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphClone(clone: Out<Handle>, graph: Handle) -> Status {
    call("cuGraphClone", || {
        clone.check()?;
        let driver = driver()?;
        let graph = driver.graphs.get(graph)?;
        clone.set(driver.graphs.insert(Graph::take(&graph)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiateWithFlags(
    executable: Out<Handle>,
    graph: Handle,
    flags: u64,
) -> Status {
    call("cuGraphInstantiateWithFlags", || instantiate(executable, graph, flags))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiate_v2(
    executable: Out<Handle>,
    graph: Handle,
    _node: Out<Handle>,
    _log: Out<u8>,
    _size: usize,
) -> Status {
    call("cuGraphInstantiate_v2", || instantiate(executable, graph, 0))
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct InstantiateParameters {
    flags: u64,
    upload: Handle,
    failed_node: Handle,
    result: u32,
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiateWithParams(
    executable: Out<Handle>,
    graph: Handle,
    parameters: Out<InstantiateParameters>,
) -> Status {
    call("cuGraphInstantiateWithParams", || {
        let given = parameters.get()?;
        let outcome = instantiate(executable, graph, given.flags);
        let result = u32::from(outcome.is_err());
        parameters.set(InstantiateParameters { failed_node: 0, result, ..given })?;
        outcome
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecGetFlags(executable: Handle, flags: Out<u64>) -> Status {
    call("cuGraphExecGetFlags", || flags.set(driver()?.executables.get(executable)?.flags))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(executable: Handle) -> Status {
    call("cuGraphExecDestroy", || driver()?.executables.remove(executable).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphUpload(executable: Handle, on: Handle) -> Status {
    call("cuGraphUpload", || {
        driver()?.executables.get(executable)?;
        stream(on).map(drop)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(executable: Handle, on: Handle) -> Status {
    call("cuGraphLaunch", || {
        let executable = driver()?.executables.get(executable)?;
        stream(on)?.submit(Work::Graph(executable))
    })
}

/// Fills an array of the caller's, or says how long it would be.
fn list(found: &[Handle], into: Out<Handle>, length: Out<usize>) -> Outcome {
    if !into.is_null() {
        let room = length.get()?;
        for index in 0..room {
            into.set_at(index, found.get(index).copied().unwrap_or(0))?;
        }
        return length.set(found.len().min(room));
    }
    length.set(found.len())
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphGetNodes(handle: Handle, nodes: Out<Handle>, length: Out<usize>) -> Status {
    call("cuGraphGetNodes", || {
        let graph = driver()?.graphs.get(handle)?;
        let found: Vec<_> = (0..graph.length()).map(|node| node_handle(handle, node)).collect();
        list(&found, nodes, length)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphGetRootNodes(
    handle: Handle,
    nodes: Out<Handle>,
    length: Out<usize>,
) -> Status {
    call("cuGraphGetRootNodes", || {
        let graph = driver()?.graphs.get(handle)?;
        let found: Vec<_> =
            graph.roots().into_iter().map(|node| node_handle(handle, node)).collect();
        list(&found, nodes, length)
    })
}

fn edges(handle: Handle, from: Out<Handle>, to: Out<Handle>, length: Out<usize>) -> Outcome {
    let (starts, ends): (Vec<_>, Vec<_>) = driver()?
        .graphs
        .get(handle)?
        .edges()
        .into_iter()
        .map(|(from, to)| (node_handle(handle, from), node_handle(handle, to)))
        .unzip();
    let room = if from.is_null() { 0 } else { length.get()? };
    list(&starts, from, length)?;
    if !from.is_null() {
        length.set(room)?;
    }
    list(&ends, to, length)
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphGetEdges(
    graph: Handle,
    from: Out<Handle>,
    to: Out<Handle>,
    length: Out<usize>,
) -> Status {
    call("cuGraphGetEdges", || edges(graph, from, to, length))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphGetEdges_v2(
    graph: Handle,
    from: Out<Handle>,
    to: Out<Handle>,
    data: In<u64>,
    length: Out<usize>,
) -> Status {
    call("cuGraphGetEdges_v2", || match data.is_null() {
        true => edges(graph, from, to, length),
        false => Err(Error::NotSupported),
    })
}

/// `CUgraphNodeType` of a node.
#[unsafe(no_mangle)]
extern "C" fn cuGraphNodeGetType(node: Handle, kind: Out<u32>) -> Status {
    call("cuGraphNodeGetType", || {
        kind.check()?;
        let (graph, number) = (node & ((1 << 48) - 1), node >> 48);
        let graph = driver()?.graphs.get(graph)?;
        let nodes = lock(&graph.nodes);
        let found = number.checked_sub(1).and_then(|number| nodes.get(number));
        kind.set(match found.ok_or(Error::InvalidValue)?.work {
            Work::Launch(_) => 0,
            Work::Copy(_) => 1,
            Work::Fill(_) => 2,
            Work::Host(..) | Work::Callback { .. } => 3,
            Work::Graph(_) => 4,
            Work::Wait(..) => 6,
            Work::Record(..) => 7,
            Work::Allocate(_) => 10,
            Work::Free(_) | Work::Return => 11,
        })
    })
}

super::exports![
    cuGraphCreate,
    cuGraphDestroy,
    cuGraphClone,
    cuGraphInstantiateWithFlags,
    cuGraphInstantiate_v2,
    cuGraphInstantiateWithParams,
    cuGraphExecGetFlags,
    cuGraphExecDestroy,
    cuGraphUpload,
    cuGraphLaunch,
    cuGraphGetNodes,
    cuGraphGetRootNodes,
    cuGraphGetEdges,
    cuGraphGetEdges_v2,
    cuGraphNodeGetType,
];
