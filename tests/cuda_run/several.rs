//! Several contexts, several streams, and graphs.

use std::sync::Arc;
use std::thread;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaSlice, CudaStream};
use gradroute::cuda::{
    Device, DeviceCategories, DeviceGrad, DeviceInputs, DeviceOutputs, DeviceRouted, DeviceRouting,
    DeviceRows, LinearPlan, Plan, Properties, RoutingShape, Wish, plan_linear,
};
use gradroute::ops::plan::Request;
use gradroute::problem::{Dtype, Linear, Rows};
use gradroute::routing::{LayerRouting, RegionMap};

use crate::support::{Second, device, present, second_context};

const SAMPLES: usize = 3;
const ROWS: usize = 20;
const INPUTS: usize = 24;
const OUTPUTS: usize = 40;

/// Two categories, of which the second is routed away.
fn routing() -> LayerRouting {
    let whole = RegionMap::whole(OUTPUTS, INPUTS);
    LayerRouting::new(whole, 2, vec![1.0, 0.0], vec![1.0; 2]).unwrap()
}

fn plan(properties: &Properties) -> LinearPlan {
    let rows = Rows::uniform(SAMPLES, ROWS).unwrap();
    let problem = Linear::new(rows, INPUTS, OUTPUTS).unwrap();
    let request = Request { dw: true, norms: true, ..Request::default() };
    let routing = Some(RoutingShape::of(&routing()));
    let wish = Wish { request, routing, ..Wish::default() };
    plan_linear(&problem, Dtype::F32, wish, properties).unwrap()
}

/// A call's buffers: the inputs, then `dw`, squared norms, workspace.
struct Call {
    plan: LinearPlan,
    x: CudaSlice<f32>,
    dy: CudaSlice<f32>,
    rows: DeviceRows,
    layer: DeviceRouting,
    categories: DeviceCategories,
    dw: CudaSlice<f32>,
    sq_norm: CudaSlice<f32>,
    workspace: CudaSlice<u8>,
}

impl Call {
    fn new(device: &Device, stream: &Arc<CudaStream>, seed: usize) -> Self {
        let plan = plan(&device.properties().unwrap());
        let numbers = |length: usize| {
            let numbers = (0..length).map(|at| ((at + seed) * 7 % 11) as f32 - 5.0);
            stream.clone_htod(&numbers.collect::<Vec<f32>>()).unwrap()
        };
        let rows = Rows::uniform(SAMPLES, ROWS).unwrap();
        Self {
            x: numbers(SAMPLES * ROWS * INPUTS),
            dy: numbers(SAMPLES * ROWS * OUTPUTS),
            rows: DeviceRows::upload(stream, &rows).unwrap(),
            layer: DeviceRouting::upload(stream, &routing()).unwrap(),
            categories: DeviceCategories::upload(stream, &[0, 1, 0], 2).unwrap(),
            dw: numbers(OUTPUTS * INPUTS),
            sq_norm: numbers(SAMPLES),
            workspace: stream.alloc_zeros(plan.workspace_bytes() as usize).unwrap(),
            plan,
        }
    }

    fn run(&mut self, device: &Device, stream: &Arc<CudaStream>) -> gradroute::Result<()> {
        let (layer, categories) = (&self.layer, &self.categories);
        let inputs = DeviceInputs {
            x: Some(self.x.as_view()),
            dy: Some(self.dy.as_view()),
            routing: Some(DeviceRouted { layer, categories, gates: None }),
            ..DeviceInputs::new(&self.rows)
        };
        let outputs = DeviceOutputs {
            dw: Some(DeviceGrad::F32(self.dw.as_view_mut())),
            sq_norm: Some(self.sq_norm.as_view_mut()),
            ..DeviceOutputs::default()
        };
        self.plan.run(device, stream, inputs, outputs, self.workspace.as_view_mut())
    }

    fn results(&self, stream: &Arc<CudaStream>) -> [Vec<f32>; 2] {
        [&self.dw, &self.sq_norm].map(|values| stream.clone_dtoh(values).unwrap())
    }
}

/// What a call gives, made and run on one stream.
fn alone(device: &Device, stream: &Arc<CudaStream>, seed: usize) -> [Vec<f32>; 2] {
    let mut call = Call::new(device, stream, seed);
    call.run(device, stream).unwrap();
    call.results(stream)
}

#[test]
fn two_contexts_at_once_give_the_same_bits() {
    if !present() {
        return;
    }
    let first = device();
    let Second { context } = second_context();
    let second = Arc::new(Device::on(context).unwrap());
    let expected = alone(&first, &first.context().default_stream(), 1);
    let gate = std::sync::Barrier::new(2);
    thread::scope(|scope| {
        let running = [&first, &second].map(|device| {
            let gate = &gate;
            scope.spawn(move || {
                device.context().bind_to_thread().unwrap();
                let stream = device.context().default_stream();
                gate.wait();
                (0..4).map(|_| alone(device, &stream, 1)).collect::<Vec<_>>()
            })
        });
        for thread in running {
            let all = thread.join().expect("no thread panics");
            assert!(all.iter().all(|results| *results == expected));
        }
    });
    // What belongs to one is not known to the other.
    let stream = second.context().default_stream();
    let mut call = Call::new(&second, &stream, 1);
    assert!(call.run(&first, &stream).is_err());
    call.run(&second, &stream).unwrap();
}

/// Buffers made on one stream, used on another and dropped at once: cudarc's guards must see the launch.
#[test]
fn buffers_live_until_another_stream_is_through_with_them() {
    if !present() {
        return;
    }
    let Second { context } = second_context();
    let device = Device::on(context).unwrap();
    let (made, used) =
        (device.context().new_stream().unwrap(), device.context().new_stream().unwrap());
    let expected = alone(&device, &made, 5);
    for _ in 0..8 {
        let mut call = Call::new(&device, &made, 5);
        call.run(&device, &used).unwrap();
        let Call { x, dy, dw, sq_norm, workspace, .. } = call;
        drop((x, dy, workspace));
        // Memory that was free too early would be theirs.
        let others = [(); 3].map(|()| made.clone_htod(&vec![f32::NAN; 2400]).unwrap());
        let results = [&dw, &sq_norm].map(|values| used.clone_dtoh(values).unwrap());
        assert!(results == expected);
        drop(others);
    }
}

#[test]
fn four_streams_share_inputs() {
    if !present() {
        return;
    }
    let device = device();
    let own = device.context().new_stream().unwrap();
    let expected = alone(&device, &own, 3);
    thread::scope(|scope| {
        let running = [(); 4].map(|()| {
            let (device, own) = (&device, &own);
            scope.spawn(move || {
                device.context().bind_to_thread().unwrap();
                let stream = device.context().new_stream().unwrap();
                let mut call = Call::new(device, own, 3);
                call.run(device, &stream).unwrap();
                call.results(&stream)
            })
        });
        for thread in running {
            assert!(thread.join().expect("no thread panics") == expected);
        }
    });
}

fn capture(
    call: &mut Call,
    device: &Device,
    stream: &Arc<CudaStream>,
) -> (gradroute::Result<()>, Option<CudaGraph>) {
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let run = call.run(device, stream);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    (run, stream.end_capture(flags).unwrap())
}

/// A captured run does what the buffers say when the graph is launched: other categories, another `dw`.
#[test]
fn a_run_is_captured_where_events_are_not_tracked() {
    if !present() {
        return;
    }
    let Second { context } = second_context();
    // SAFETY: all of the context's work goes to one stream.
    unsafe { context.disable_event_tracking() };
    let device = Device::on(context).unwrap();
    let stream = device.context().new_stream().unwrap();
    let mut call = Call::new(&device, &stream, 1);
    call.run(&device, &stream).unwrap();
    let direct = call.results(&stream);
    let (run, graph) = capture(&mut call, &device, &stream);
    run.unwrap();
    let graph = graph.expect("something was captured");
    call.categories.update(&stream, &[1, 1, 0]).unwrap();
    assert!(call.results(&stream) == direct, "capturing does nothing by itself");
    graph.launch().unwrap();
    let replayed = call.results(&stream);
    call.run(&device, &stream).unwrap();
    assert!(replayed == call.results(&stream) && replayed[0] != direct[0]);
}

#[test]
fn a_run_is_not_captured_where_events_are_tracked() {
    if !present() {
        return;
    }
    let Second { context } = second_context();
    let device = Device::on(context).unwrap();
    let stream = device.context().new_stream().unwrap();
    let mut call = Call::new(&device, &stream, 1);
    // Kernels are loaded, so that nothing else stands in the way.
    call.run(&device, &stream).unwrap();
    let (run, _) = capture(&mut call, &device, &stream);
    let text = run.expect_err("it is refused").to_string();
    assert!(text.contains("disable_event_tracking"), "{text}");
    call.run(&device, &stream).unwrap();
}
