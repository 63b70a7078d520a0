//! Events: marks in a stream's order, and when they were reached.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::boundary::{Out, call};
use super::capture::{self, Point};
use super::context::{Health, context};
use super::error::{Error, Outcome, Status};
use super::state::{Handle, driver, lock};
use super::stream::{Stream, stream};
use super::work::Work;

const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;
const KNOWN_FLAGS: u32 = 7;

#[derive(Debug)]
pub struct Event {
    pub context: Handle,
    flags: u32,
    health: Arc<Health>,
    marks: Mutex<Marks>,
    reached: Condvar,
}

/// The event's records by number. A wait is for the one that was the last when it was asked for: later
/// ones, on other streams, may be reached before it.
#[derive(Debug, Default)]
struct Marks {
    issued: u64,
    /// The last that a stream took.
    last: u64,
    unfinished: BTreeSet<u64>,
    /// The last of those that were reached, and when.
    reached: Option<(u64, Instant)>,
    /// Set while the last record is part of a capture.
    captured: Option<Point>,
}

impl Event {
    pub fn new(context: Handle, health: Arc<Health>, flags: u32) -> Self {
        Self { context, flags, health, marks: Mutex::default(), reached: Condvar::new() }
    }

    /// A number for a record, for [`Event::finish`] and [`Event::wait`].
    pub fn issue(&self) -> u64 {
        let mut marks = lock(&self.marks);
        marks.issued += 1;
        let number = marks.issued;
        marks.unfinished.insert(number);
        number
    }

    pub fn finish(&self, number: u64) {
        let mut marks = lock(&self.marks);
        marks.unfinished.remove(&number);
        marks.reached = marks.reached.max(Some((number, Instant::now())));
        self.reached.notify_all();
    }

    /// Records the event behind a stream's work. If the stream refuses, the event stays as it was: nobody
    /// would ever finish the record.
    pub fn record(self: &Arc<Self>, stream: &Arc<Stream>) -> Outcome {
        let number = self.issue();
        let submitted = stream.submit(Work::Record(self.clone(), number));
        let mut marks = lock(&self.marks);
        if submitted.is_ok() {
            marks.last = marks.last.max(number);
            marks.captured = None;
        } else {
            marks.unfinished.remove(&number);
        }
        submitted
    }

    pub fn capture(&self, point: Point) {
        lock(&self.marks).captured = Some(point);
    }

    pub fn captured(&self) -> Option<Point> {
        lock(&self.marks).captured.clone()
    }

    /// The number of the last record, if it is not reached yet.
    pub fn pending(&self) -> Option<u64> {
        let marks = lock(&self.marks);
        marks.unfinished.contains(&marks.last).then_some(marks.last)
    }

    pub fn is_finished(&self, number: u64) -> bool {
        !lock(&self.marks).unfinished.contains(&number)
    }

    pub fn wait(&self, number: u64) {
        let mut marks = lock(&self.marks);
        while marks.unfinished.contains(&number) {
            marks = self.reached.wait(marks).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Refuses what may not be asked of an event that is part of a capture.
    fn not_captured(&self) -> Outcome {
        match self.captured() {
            Some(point) => {
                point.session.invalidate();
                Err(Error::CapturedEvent)
            }
            None => Ok(()),
        }
    }

    /// When the last record was reached.
    fn time(&self) -> Outcome<Instant> {
        self.not_captured()?;
        if self.flags & DISABLE_TIMING != 0 {
            return Err(Error::InvalidHandle);
        }
        if self.pending().is_some() {
            return Err(Error::NotReady);
        }
        let (_, at) = lock(&self.marks).reached.ok_or(Error::InvalidHandle)?;
        Ok(at)
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: Out<Handle>, flags: u32) -> Status {
    call("cuEventCreate", || {
        event.check()?;
        let context = context()?;
        if flags & !KNOWN_FLAGS != 0 {
            return Err(Error::InvalidValue);
        }
        if flags & INTERPROCESS != 0 {
            eprintln!("softcuda: cuEventCreate: events between processes are not supported");
            return Err(Error::NotSupported);
        }
        let made = Event::new(context.handle, context.health.clone(), flags);
        event.set(driver()?.events.insert(made))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Handle) -> Status {
    // Whoever still waits for it holds it himself.
    call("cuEventDestroy_v2", || driver()?.events.remove(event).map(drop))
}

fn record(event: Handle, on: Handle) -> Outcome {
    let event = driver()?.events.get(event)?;
    let stream = stream(on)?;
    if let Some(point) = stream.capture_point()? {
        event.capture(point);
        return Ok(());
    }
    event.record(&stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> Status {
    call("cuEventRecord", || record(event, stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecordWithFlags(event: Handle, stream: Handle, flags: u32) -> Status {
    call("cuEventRecordWithFlags", || match flags {
        0 | 1 => record(event, stream),
        _ => Err(Error::InvalidValue),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: Handle) -> Status {
    call("cuEventQuery", || {
        let event = driver()?.events.get(event)?;
        event.not_captured()?;
        capture::forbid()?;
        event.health.check()?;
        if event.pending().is_some() { Err(Error::NotReady) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Handle) -> Status {
    call("cuEventSynchronize", || {
        let event = driver()?.events.get(event)?;
        event.not_captured()?;
        capture::forbid()?;
        if let Some(number) = event.pending() {
            event.wait(number);
        }
        event.health.check()
    })
}

fn elapsed(milliseconds: Out<f32>, start: Handle, end: Handle) -> Outcome {
    milliseconds.check()?;
    let (start, end) = (driver()?.events.get(start)?, driver()?.events.get(end)?);
    let (from, to) = (start.time()?, end.time()?);
    start.health.check()?;
    let seconds = match to.checked_duration_since(from) {
        Some(later) => later.as_secs_f64(),
        None => -from.duration_since(to).as_secs_f64(),
    };
    milliseconds.set((seconds * 1e3) as f32)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) -> Status {
    call("cuEventElapsedTime", || elapsed(milliseconds, start, end))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) -> Status {
    call("cuEventElapsedTime_v2", || elapsed(milliseconds, start, end))
}

super::exports![
    cuEventCreate,
    cuEventDestroy_v2,
    cuEventRecord,
    cuEventRecordWithFlags,
    cuEventQuery,
    cuEventSynchronize,
    cuEventElapsedTime,
    cuEventElapsedTime_v2,
];
