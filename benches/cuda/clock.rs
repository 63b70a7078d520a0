//! Time on the device: events around the work, with the second-level cache flushed before it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUevent_flags};
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream};

/// A stream and what timing on it needs.
pub struct Clock {
    pub stream: Arc<CudaStream>,
    events: [CudaEvent; 2],
    flush: CudaSlice<u8>,
}

impl Clock {
    pub fn new(stream: Arc<CudaStream>) -> Self {
        let context = stream.context();
        let event = || context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).expect("an event");
        let cache = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).unwrap_or(0);
        // So much that filling it takes longer than the host takes to queue what is timed.
        let bytes = (4 * cache.max(0) as usize).max(1 << 28);
        let flush = stream.alloc_zeros::<u8>(bytes).expect("room for a flush");
        Self { events: [event(), event()], flush, stream }
    }

    /// Device time of one run.
    pub fn time(&mut self, run: &mut dyn FnMut()) -> Duration {
        for _ in 0..2 {
            self.stream.memset_zeros(&mut self.flush).expect("a fill");
        }
        let [start, end] = &self.events;
        start.record(&self.stream).expect("an event is recorded");
        run();
        end.record(&self.stream).expect("an event is recorded");
        let milliseconds = start.elapsed_ms(end).expect("the device is through");
        Duration::from_secs_f64(f64::from(milliseconds) / 1e3)
    }

    /// Keeps the device busy until its clocks are up.
    pub fn warm_up(&mut self, run: &mut dyn FnMut()) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            (0..20).for_each(|_| run());
            self.stream.synchronize().expect("the device is through");
        }
    }

    /// Times all candidates in turn, `rounds` times; seconds by candidate and round.
    pub fn rounds(&mut self, rounds: usize, runs: &mut [&mut dyn FnMut()]) -> Vec<Vec<f64>> {
        let mut times = vec![Vec::new(); runs.len()];
        for _ in 0..rounds {
            for (run, times) in runs.iter_mut().zip(&mut times) {
                times.push(self.time(run).as_secs_f64());
            }
        }
        times
    }
}

/// Median and quartiles of `own` over `other`, round by round, as a table cell.
pub fn ratio(own: &[f64], other: &[f64]) -> String {
    let mut ratios: Vec<f64> = own.iter().zip(other).map(|(own, other)| own / other).collect();
    let at = quantile(&mut ratios);
    format!("{:.3} ({:.3}–{:.3})", at(0.5), at(0.25), at(0.75))
}

/// The same of times, in microseconds.
pub fn microseconds(times: &[f64]) -> String {
    let mut times: Vec<f64> = times.iter().map(|seconds| seconds * 1e6).collect();
    let at = quantile(&mut times);
    format!("{:.1} ({:.1}–{:.1})", at(0.5), at(0.25), at(0.75))
}

fn quantile(values: &mut [f64]) -> impl Fn(f64) -> f64 + '_ {
    values.sort_unstable_by(f64::total_cmp);
    |share| values[((values.len() - 1) as f64 * share).round() as usize]
}
