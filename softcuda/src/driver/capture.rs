//! Stream capture: work becomes nodes of a graph instead of being done.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::ThreadId;

use super::boundary::{Out, call};
use super::error::{Error, Outcome, Status};
use super::graph::Graph;
use super::state::{Handle, driver, lock};
use super::stream::{Stream, stream};
use super::work::Work;

const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

/// One capture, over all streams that take part.
#[derive(Debug)]
pub struct Session {
    id: u64,
    pub graph: Arc<Graph>,
    origin: Handle,
    thread: ThreadId,
    mode: u32,
    invalid: AtomicBool,
    ended: AtomicBool,
}

impl Session {
    /// Something was done that a graph can't hold: the capture will give none.
    pub fn invalidate(&self) {
        self.invalid.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Outcome {
        match self.invalid.load(Ordering::Relaxed) {
            true => Err(Error::StreamCaptureInvalidated),
            false => Ok(()),
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Refuses whatever would go into a graph that nobody gets.
    fn check_open(&self) -> Outcome {
        self.check()?;
        if self.has_ended() { Err(Error::StreamCaptureInvalidated) } else { Ok(()) }
    }

    /// Ends it: all streams that take part are free again, whatever becomes of the graph.
    fn end(&self) -> Outcome {
        // Before the streams: from now on none joins.
        self.ended.store(true, Ordering::Relaxed);
        let driver = driver()?;
        for (_, context) in driver.contexts.select(|_| true) {
            for stream in context.streams(driver) {
                stream.with_capture(|held| drop(held.take_if(|held| held.session.id == self.id)));
            }
        }
        Ok(())
    }
}

/// A stream's part in a capture.
#[derive(Debug)]
pub struct Capture {
    pub session: Arc<Session>,
    /// Nodes that the next one comes behind.
    tail: Vec<usize>,
}

/// A place in a capture, as an event marks it.
#[derive(Debug, Clone)]
pub struct Point {
    pub session: Arc<Session>,
    pub tail: Vec<usize>,
}

impl Capture {
    pub fn add(&mut self, work: Work) -> Outcome {
        self.session.check_open()?;
        let node = self.session.graph.add(work, std::mem::take(&mut self.tail));
        self.tail = vec![node];
        Ok(())
    }

    pub fn point(&self) -> Outcome<Point> {
        self.session.check_open()?;
        Ok(Point { session: self.session.clone(), tail: self.tail.clone() })
    }
}

/// All captures that may still be going on.
static SESSIONS: Mutex<Vec<Weak<Session>>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The thread's own mode (`cuThreadExchangeStreamCaptureMode`).
    static MODE: Cell<u32> = const { Cell::new(GLOBAL) };
}

/// Refuses a call that waits for the device or changes its memory at once while a capture forbids it.
pub fn forbid() -> Outcome {
    let own = MODE.get();
    if own == RELAXED {
        return Ok(());
    }
    let here = std::thread::current().id();
    let mut sessions = lock(&SESSIONS);
    sessions.retain(|session| session.upgrade().is_some_and(|session| !session.has_ended()));
    for session in sessions.iter().filter_map(Weak::upgrade) {
        let concerned = match session.mode {
            GLOBAL => own == GLOBAL || session.thread == here,
            THREAD_LOCAL => session.thread == here,
            _ => false,
        };
        if concerned {
            session.invalidate();
            return Err(Error::StreamCaptureUnsupported);
        }
    }
    Ok(())
}

/// Makes a stream wait for a captured event: it joins the capture.
pub fn join(stream: &Arc<Stream>, point: &Point) -> Outcome {
    point.session.check()?;
    stream.with_capture(|capture| match capture {
        // Asked with the stream held: the end of the capture has yet to come past it, or has.
        _ if point.session.has_ended() => Err(Error::CapturedEvent),
        Some(capture) if capture.session.id != point.session.id => {
            capture.session.invalidate();
            point.session.invalidate();
            Err(Error::StreamCaptureMerge)
        }
        Some(capture) => {
            capture.tail.extend(&point.tail);
            capture.tail.sort_unstable();
            capture.tail.dedup();
            Ok(())
        }
        None => {
            let (session, tail) = (point.session.clone(), point.tail.clone());
            *capture = Some(Capture { session, tail });
            Ok(())
        }
    })
}

fn begin(on: Handle, graph: Arc<Graph>, tail: Vec<usize>, mode: u32) -> Outcome {
    let stream = stream(on)?;
    if mode > RELAXED {
        return Err(Error::InvalidValue);
    }
    if stream.handle == 0 {
        return Err(Error::StreamCaptureUnsupported);
    }
    stream.with_capture(|capture| {
        if capture.is_some() {
            return Err(Error::IllegalState);
        }
        let session = Arc::new(Session {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            graph,
            origin: stream.handle,
            thread: std::thread::current().id(),
            mode,
            invalid: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        lock(&SESSIONS).push(Arc::downgrade(&session));
        *capture = Some(Capture { session, tail });
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) -> Status {
    call("cuStreamBeginCapture_v2", || begin(stream, Arc::default(), Vec::new(), mode))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamEndCapture(on: Handle, graph: Out<Handle>) -> Status {
    call("cuStreamEndCapture", || {
        graph.check()?;
        let stream = stream(on)?;
        let session = stream.with_capture(|capture| match capture {
            None => Err(Error::IllegalState),
            Some(held) if held.session.origin != stream.handle => {
                held.session.invalidate();
                Err(Error::StreamCaptureUnmatched)
            }
            Some(held) => {
                let wrong_thread = held.session.mode != RELAXED
                    && held.session.thread != std::thread::current().id();
                if wrong_thread {
                    held.session.invalidate();
                    return Err(Error::StreamCaptureWrongThread);
                }
                let Capture { session, tail } = capture.take().expect("it is there");
                Ok((session, tail))
            }
        });
        let (session, tail) = session?;
        // Events that were recorded in it may hold it on.
        session.end()?;
        graph.set(0)?;
        session.check()?;
        if !session.graph.all_before(&tail) {
            return Err(Error::StreamCaptureUnjoined);
        }
        graph.set(driver()?.graphs.insert(Graph::take(&session.graph)))
    })
}

/// Status, id and graph of the capture a stream takes part in.
fn info(on: Handle) -> Outcome<(u32, u64)> {
    let stream = stream(on)?;
    if stream.legacy() {
        stream.blocking()?;
    }
    Ok(stream.with_capture(|capture| match capture {
        None => (0, 0),
        Some(capture) if capture.session.check().is_ok() => (1, capture.session.id),
        Some(_) => (2, 0),
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: Handle, status: Out<u32>) -> Status {
    call("cuStreamIsCapturing", || status.set(info(stream)?.0))
}

/// What all versions of `cuStreamGetCaptureInfo` tell; graph and nodes of a running capture have no handles.
fn capture_info(stream: Handle, status: Out<u32>, id: Out<u64>, others: &[Out<usize>]) -> Outcome {
    status.check()?;
    let (now, number) = info(stream)?;
    if now == 1 && others.iter().any(|other| !other.is_null()) {
        eprintln!("softcuda: the graph of a running capture cannot be changed");
        return Err(Error::NotSupported);
    }
    status.set(now)?;
    id.set_if_wanted(number)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCaptureInfo(stream: Handle, status: Out<u32>, id: Out<u64>) -> Status {
    call("cuStreamGetCaptureInfo", || capture_info(stream, status, id, &[]))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCaptureInfo_v2(
    stream: Handle,
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<usize>,
    nodes: Out<usize>,
    count: Out<usize>,
) -> Status {
    call("cuStreamGetCaptureInfo_v2", || capture_info(stream, status, id, &[graph, nodes, count]))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCaptureInfo_v3(
    stream: Handle,
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<usize>,
    nodes: Out<usize>,
    edges: Out<usize>,
    count: Out<usize>,
) -> Status {
    let others = [graph, nodes, edges, count];
    call("cuStreamGetCaptureInfo_v3", || capture_info(stream, status, id, &others))
}

#[unsafe(no_mangle)]
extern "C" fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) -> Status {
    call("cuThreadExchangeStreamCaptureMode", || {
        let wanted = mode.get()?;
        if wanted > RELAXED {
            return Err(Error::InvalidValue);
        }
        mode.set(MODE.replace(wanted))
    })
}

super::exports![
    cuStreamBeginCapture_v2,
    cuStreamEndCapture,
    cuStreamIsCapturing,
    cuStreamGetCaptureInfo,
    cuStreamGetCaptureInfo_v2,
    cuStreamGetCaptureInfo_v3,
    cuThreadExchangeStreamCaptureMode,
];
