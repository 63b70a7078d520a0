//! Every launch is seen, as it is, and timed.

use std::sync::{Arc, Mutex};

use gradroute::cuda::{Cuda, Device, Launch, LaunchObserver, LaunchTimer};
use gradroute::ops::{Backend, LayerOutputs, LinearInputs, Options, ParamGrad};
use gradroute::problem::{Linear, Rows};

use crate::support::present;

/// Keeps what it saw.
#[derive(Default)]
struct Trace(Mutex<Vec<String>>);

impl Trace {
    fn add(&self, when: &str, launch: &Launch) {
        let Launch { kernel, grid, threads, shared_bytes, stream } = launch;
        let stream = stream.cu_stream() as usize;
        let line = format!("{when} {kernel} {grid:?} {threads} {shared_bytes} {stream}");
        self.0.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl LaunchObserver for Trace {
    fn before(&self, launch: &Launch) {
        self.add("before", launch);
    }

    fn after(&self, launch: &Launch) {
        self.add("after", launch);
    }
}

/// `dw` of a small layer.
fn backward(cuda: &mut Cuda) {
    let problem = Linear::new(Rows::uniform(3, 20).unwrap(), 8, 200).unwrap();
    let (x, dy) = (vec![1.0_f32; 60 * 8], vec![2.0_f32; 60 * 200]);
    let (mut dw, mut sq_norm) = (vec![0.0_f32; 8 * 200], vec![0.0_f32; 3]);
    let out = LayerOutputs {
        dw: Some(ParamGrad::F32(&mut dw)),
        sq_norm: Some(&mut sq_norm),
        ..LayerOutputs::default()
    };
    let inputs = LinearInputs { x: &x, dy: &dy, weight: None };
    cuda.linear(&problem, &Options::default(), inputs, None, out).unwrap();
    assert!(dw.iter().all(|&value| value == 120.0));
}

#[test]
fn an_observer_sees_every_launch_until_it_is_taken_away() {
    if !present() {
        return;
    }
    let device = Arc::new(Device::open(0).unwrap());
    let mut cuda = Cuda::on(device.clone()).unwrap();
    let trace = Arc::new(Trace::default());
    assert!(device.observe(Some(trace.clone())).is_none());
    backward(&mut cuda);
    let seen = trace.take();
    let stream = cuda.stream().cu_stream() as usize;
    let rest = format!("{stream}");
    assert!(seen.len() >= 6 && seen.len().is_multiple_of(2), "{seen:?}");
    for pair in seen.chunks(2) {
        let [before, after] = [&pair[0], &pair[1]].map(|line| line.split_once(' ').unwrap());
        assert_eq!((before.0, after.0, before.1), ("before", "after", after.1), "{seen:?}");
        assert!(before.1.ends_with(&rest), "{before:?}");
    }
    // Two tiles of 128 outputs and one of inputs; the rows of three samples in two parts.
    assert!(seen[0].starts_with("before linear_factored_wgrad_f32 [1, 2, 2] 256 "), "{seen:?}");
    assert!(device.observe(None).is_some());
    backward(&mut cuda);
    assert!(trace.take().is_empty());
}

#[test]
fn a_timer_times_every_launch_once() {
    if !present() {
        return;
    }
    let device = Arc::new(Device::open(0).unwrap());
    let mut cuda = Cuda::on(device.clone()).unwrap();
    let trace = Arc::new(Trace::default());
    device.observe(Some(trace.clone()));
    backward(&mut cuda);
    let kernel = |line: &String| line.split(' ').nth(1).unwrap().to_string();
    let kernels = trace.take().iter().step_by(2).map(kernel).collect::<Vec<_>>();
    let timer = Arc::new(LaunchTimer::default());
    device.observe(Some(timer.clone()));
    backward(&mut cuda);
    backward(&mut cuda);
    let timed = timer.take().unwrap();
    let names = timed.iter().map(|timed| timed.kernel.clone()).collect::<Vec<_>>();
    assert_eq!(names, [kernels.clone(), kernels].concat());
    assert!(timed.iter().all(|timed| timed.milliseconds >= 0.0), "{timed:?}");
    assert!(timed.iter().any(|timed| timed.milliseconds > 0.0), "{timed:?}");
    assert!(timer.take().unwrap().is_empty());
}
