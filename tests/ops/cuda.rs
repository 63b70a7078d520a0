//! The device that the suite runs on.

use std::sync::{Arc, OnceLock};
use std::thread;

use bytemuck::Pod;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaSlice, DevicePtr};
use gradroute::cuda::{Cuda, Device, Plan, Pointers, Properties, Wish, plan_linear};
use gradroute::ops::plan::{Path, Request};
use gradroute::problem::{Dtype, Linear, Rows};
use gradroute::projection::Sketch;
use half::bf16;

use crate::channels_last::{Alone, ChannelsLast, Linears};
use crate::support::case::Case;
use crate::support::catalogue::representatives;
use crate::support::run::run_all;
use crate::support::weights::{Pattern, record, sketches};

pub use crate::device::present;

/// A backend on the first device, whose modules all tests share.
pub fn open() -> Cuda {
    static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| Arc::new(Device::open(0).unwrap()));
    Cuda::on(device.clone()).unwrap()
}

/// The same, planning for a single multiprocessor.
pub fn open_small() -> Cuda {
    let cuda = open();
    let properties = Properties { multiprocessors: 1, ..cuda.properties() };
    cuda.planned_for(properties)
}

/// The same for linear layers, all of them formed.
pub fn open_formed() -> Linears {
    Alone(open().forced_to(Path::Formed))
}

/// The other path, planning for a single multiprocessor.
pub fn open_factored() -> Linears {
    Alone(open_small().forced_to(Path::Factored))
}

/// The same, for convolutions whose channels come last.
pub fn open_last() -> ChannelsLast {
    Alone(open())
}

/// What four threads get at once, each from a stream of its own, is what one gets alone, bit for bit.
#[test]
fn cuda_gives_the_same_bits_on_four_streams() {
    if !present() {
        return;
    }
    let cases: Vec<Case<bf16>> = representatives::<Cuda>()
        .into_iter()
        .enumerate()
        .map(|(c, (name, problem))| {
            let mut case = Case::random(&name, problem, c as u64);
            Pattern::ALL[c % 11].apply(&mut case, c as u64);
            record(&mut case.layers, sketches()[c % 6], false, 1.0);
            case
        })
        .collect();
    let all = || cases.iter().map(|case| run_all(&mut open(), case)).collect::<Vec<_>>();
    let alone = all();
    let together = thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(all));
        threads.map(|thread| thread.join().expect("no thread panics"))
    });
    for outputs in together {
        for ((alone, at_once), case) in alone.iter().zip(&outputs).zip(&cases) {
            alone.assert_same_bits(at_once, &case.name);
        }
    }
}

/// A launch records into a graph, and the graph does what the launch does, with what the buffers hold
/// then.
#[test]
fn cuda_launches_are_captured_in_a_graph() {
    if !present() {
        return;
    }
    let cuda = open();
    let stream = cuda.stream().clone();
    let (rows, inputs, outputs) = (Rows::uniform(3, 40).unwrap(), 72, 136);
    let problem = Linear::new(rows.clone(), inputs, outputs).unwrap().with_bias(true);
    let sketch = Sketch::two_sided(8, 1, 0).unwrap();
    let wish = Wish {
        request: Request::everything(),
        bias_norms: true,
        sketch: Some(sketch),
        ..Wish::default()
    };
    let plan = plan_linear(&problem, Dtype::Bf16, wish, &cuda.properties()).unwrap();
    let number = |at: usize| bf16::from_f32((at * 7 % 11) as f32 - 5.0);
    let numbers = |len: usize| (0..len).map(number).collect::<Vec<bf16>>();
    let total = rows.total();
    let bytes = |values: &[bf16]| stream.clone_htod(as_bytes(values)).unwrap();
    let mut x = bytes(&numbers(total * inputs));
    let (dy, weight) = (bytes(&numbers(total * outputs)), bytes(&numbers(outputs * inputs)));
    let offsets = stream.clone_htod(rows.offsets()).unwrap();
    let zeros = |len: usize| stream.alloc_zeros::<u8>(len).unwrap();
    let lengths =
        [2 * total * inputs, 4 * outputs * inputs, 4 * outputs, 12, 12, 12 * sketch.len()];
    let out = lengths.map(zeros);
    let workspace = zeros(plan.workspace_bytes() as usize);
    let address = |slice: &CudaSlice<u8>| slice.device_ptr(&stream).0;
    let [dx, dw, db, sq_norm, sq_norm_bias, sketch] = out.each_ref().map(address);
    let at = Pointers {
        x: address(&x),
        dy: address(&dy),
        weight: address(&weight),
        offsets: offsets.device_ptr(&stream).0,
        dx,
        dw,
        db,
        sq_norm,
        sq_norm_bias,
        sketch,
        workspace: address(&workspace),
        ..Pointers::default()
    };
    // SAFETY: the buffers are those of the problem, and live until the stream is waited for.
    let launch = || unsafe { plan.launch(cuda.device(), &stream, None, &at) }.unwrap();
    let results = || out.each_ref().map(|slice| stream.clone_dtoh(slice).unwrap());
    launch();
    let direct = results();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    launch();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("something was captured");
    assert!(results() == direct, "capturing does nothing by itself");
    graph.launch().unwrap();
    assert!(results() == direct);
    let other = numbers(total * inputs).into_iter().rev().collect::<Vec<_>>();
    stream.memcpy_htod(as_bytes(&other), &mut x).unwrap();
    graph.launch().unwrap();
    let replayed = results();
    launch();
    assert!(replayed == results() && replayed[1] != direct[1]);
}

fn as_bytes<T: Pod>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}
