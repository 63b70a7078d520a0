//! Streams: work in order. A stream does its work in the caller's thread as long as nothing keeps it; what
//! may have to wait, and everything behind it, is done by a thread of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::capture::{Capture, Point};
use super::context::{Context, Health, context};
use super::error::{Error, Outcome};
use super::event::Event;
use super::state::{Handle, driver, lock};
use super::work::Work;

pub const NON_BLOCKING: u32 = 1;
/// Handles with a meaning of their own.
const LEGACY: Handle = 1;
const PER_THREAD: Handle = 2;

#[derive(Debug)]
pub struct Stream {
    /// 0 for a context's own stream.
    pub handle: Handle,
    pub context: Handle,
    pub health: Arc<Health>,
    pub flags: u32,
    pub priority: i32,
    queue: Mutex<Queue>,
    rest: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Work>,
    /// How many works were given so far, and how many of them are done.
    given: u64,
    done: u64,
    /// Somebody, the caller or the stream's thread, is at it.
    busy: bool,
    capture: Option<Capture>,
}

impl Queue {
    fn push(&mut self, work: Work) {
        self.given += 1;
        self.waiting.push_back(work);
    }
}

/// The stream of a handle.
pub fn stream(handle: Handle) -> Outcome<Arc<Stream>> {
    match handle {
        0 | LEGACY => Ok(context()?.stream.clone()),
        PER_THREAD => Ok(context()?.stream_of_thread()),
        _ => driver()?.streams.get(handle),
    }
}

impl Stream {
    pub fn new(handle: Handle, context: &Context, flags: u32, priority: i32) -> Self {
        Self::of(handle, context.handle, context.health.clone(), flags, priority)
    }

    pub fn of(
        handle: Handle,
        context: Handle,
        health: Arc<Health>,
        flags: u32,
        priority: i32,
    ) -> Self {
        Self {
            handle,
            context,
            health,
            flags,
            priority,
            queue: Mutex::default(),
            rest: Condvar::new(),
        }
    }

    /// True for a context's own stream.
    pub fn legacy(&self) -> bool {
        self.handle == 0 && self.flags & NON_BLOCKING == 0
    }

    /// Does work behind all that was submitted before; while capturing, makes it a node of the graph.
    ///
    /// # Errors
    ///
    /// Those of the work itself, if it was done at once.
    pub fn submit(self: &Arc<Self>, work: Work) -> Outcome {
        if let Some(capture) = &mut lock(&self.queue).capture {
            return capture.add(work);
        }
        let asynchronous = driver()?.asynchronous;
        // A launch and the mark behind it go together: hardware would not have begun yet.
        if !(asynchronous && matches!(work, Work::Record(..))) {
            self.health.check()?;
        }
        let fences = self.fences()?;
        let mut queue = lock(&self.queue);
        fences.into_iter().for_each(|(event, number)| queue.push(Work::Wait(event, number)));
        if queue.busy {
            queue.push(work);
            return Ok(());
        }
        queue.busy = true;
        if !queue.waiting.is_empty() || work.leaves_caller(asynchronous) {
            queue.push(work);
            drop(queue);
            return self.detach();
        }
        queue.given += 1;
        drop(queue);
        let done = work.run(&self.health);
        if self.finish() {
            // Another thread submitted meanwhile.
            self.detach()?;
        }
        done
    }

    /// Counts a work as done; true if there is more.
    fn finish(&self) -> bool {
        let mut queue = lock(&self.queue);
        queue.done += 1;
        queue.busy = !queue.waiting.is_empty();
        self.rest.notify_all();
        queue.busy
    }

    /// Leaves the queue to a thread of its own.
    fn detach(self: &Arc<Self>) -> Outcome {
        let stream = self.clone();
        let named = std::thread::Builder::new().name("softcuda stream".to_owned());
        let started = named.spawn(move || {
            loop {
                let next = lock(&stream.queue).waiting.pop_front();
                let work = next.expect("only its thread takes from a queue that is left to one");
                if let Err(error) = work.run(&stream.health) {
                    // Nobody is there to be told: the next call on the context is.
                    let _ = stream.health.fail(error);
                }
                if !stream.finish() {
                    return;
                }
            }
        });
        started.map(drop).map_err(|error| {
            eprintln!("softcuda: no thread for a stream: {error}");
            Error::OperatingSystem
        })
    }

    /// The context's own stream and those made without `NON_BLOCKING` wait for each other.
    fn fences(&self) -> Outcome<Vec<(Arc<Event>, u64)>> {
        let others = if self.legacy() {
            self.blocking()?
        } else if self.flags & NON_BLOCKING == 0 {
            vec![driver()?.contexts.get(self.context)?.stream.clone()]
        } else {
            Vec::new()
        };
        Ok(others.iter().filter_map(|other| other.fence()).collect())
    }

    /// The streams that the context's own one waits for, those of threads among them.
    ///
    /// # Errors
    ///
    /// If one is capturing: its work is not done, so nothing can wait for it.
    pub fn blocking(&self) -> Outcome<Vec<Arc<Stream>>> {
        let driver = driver()?;
        let mut others = driver.contexts.get(self.context)?.streams(driver);
        others.retain(|other| other.flags & NON_BLOCKING == 0 && !other.legacy());
        if others.iter().any(|other| lock(&other.queue).capture.is_some()) {
            return Err(Error::StreamCaptureImplicit);
        }
        Ok(others)
    }

    /// An event behind all that is still to be done, if there is something.
    fn fence(&self) -> Option<(Arc<Event>, u64)> {
        let mut queue = lock(&self.queue);
        queue.busy.then(|| {
            let event = Arc::new(Event::new(self.context, self.health.clone(), 0));
            let number = event.issue();
            queue.push(Work::Record(event.clone(), number));
            (event, number)
        })
    }

    pub fn is_idle(&self) -> bool {
        !lock(&self.queue).busy
    }

    /// Waits until all work that was given so far is done: what other threads give meanwhile might
    /// never end.
    ///
    /// # Errors
    ///
    /// The context's fault, if it had one.
    pub fn synchronize(&self) -> Outcome {
        let mut queue = lock(&self.queue);
        if let Some(capture) = &queue.capture {
            capture.session.invalidate();
            return Err(Error::StreamCaptureUnsupported);
        }
        let given = queue.given;
        while queue.done < given {
            queue = self.rest.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        drop(queue);
        self.health.check()
    }

    // For captures.

    pub fn with_capture<R>(&self, change: impl FnOnce(&mut Option<Capture>) -> R) -> R {
        change(&mut lock(&self.queue).capture)
    }

    /// What an event recorded now would stand for, while capturing.
    pub fn capture_point(&self) -> Outcome<Option<Point>> {
        self.with_capture(|capture| capture.as_ref().map(Capture::point).transpose())
    }
}
