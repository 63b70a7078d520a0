//! Every mistake of a caller is an error that names it, before anything is launched.

use cudarc::driver::{CudaSlice, CudaViewMut};
use gradroute::cuda::{
    DeviceCategories, DeviceGrad, DeviceInputs, DeviceOutputs, DeviceRouted, DeviceRouting,
    DeviceRows, LinearPlan, Plan, Pointers, RoutingShape, Wish, plan_linear,
};
use gradroute::ops::plan::{Path, Request};
use gradroute::problem::{Dtype, Element, Linear, Rows};
use gradroute::projection::Sketch;
use gradroute::routing::{LayerRouting, Region, RegionMap};
use half::f16;

use crate::support::{Second, device, error, present, second_context};

const ROWS: usize = 12;
const INPUTS: usize = 8;
const OUTPUTS: usize = 16;

/// Two regions, three categories.
fn routing(owned: usize) -> LayerRouting {
    let region = Region { outputs: owned..OUTPUTS, inputs: 0..INPUTS };
    LayerRouting::open(RegionMap::new(OUTPUTS, INPUTS, vec![region]).unwrap(), 3)
}

fn plan(routed: bool) -> LinearPlan {
    let rows = Rows::uniform(3, ROWS / 3).unwrap();
    let layer = Linear::new(rows, INPUTS, OUTPUTS).unwrap();
    let request = Request { dx: true, dw: true, sketch: true, ..Request::default() };
    let wish = Wish {
        request,
        sketch: Some(Sketch::two_sided(8, 1, 0).unwrap()),
        routing: routed.then(|| RoutingShape::of(&routing(10))),
        // The other one needs no workspace.
        path: Some(Path::Formed),
        ..Wish::default()
    };
    plan_linear(&layer, Dtype::F32, wish, &device().properties().unwrap()).unwrap()
}

/// Buffers of one call.
struct Buffers {
    x: CudaSlice<f32>,
    dy: CudaSlice<f32>,
    weight: CudaSlice<f32>,
    rows: DeviceRows,
    dx: CudaSlice<f32>,
    dw: CudaSlice<f32>,
    sketch: CudaSlice<f32>,
    workspace: CudaSlice<u8>,
}

impl Buffers {
    fn new(plan: &LinearPlan) -> Self {
        let stream = device().context().default_stream();
        let ones = |length: usize| stream.clone_htod(&vec![1.0_f32; length]).unwrap();
        Self {
            x: ones(ROWS * INPUTS),
            dy: ones(ROWS * OUTPUTS),
            weight: ones(OUTPUTS * INPUTS),
            rows: DeviceRows::upload(&stream, &Rows::uniform(3, ROWS / 3).unwrap()).unwrap(),
            dx: ones(ROWS * INPUTS),
            dw: ones(OUTPUTS * INPUTS),
            sketch: ones(3 * 64),
            workspace: stream.alloc_zeros(plan.workspace_bytes() as usize + 256).unwrap(),
        }
    }

    fn split(&mut self) -> (DeviceInputs<'_, f32>, DeviceOutputs<'_, f32>, CudaViewMut<'_, u8>) {
        let inputs = DeviceInputs {
            x: Some(self.x.as_view()),
            dy: Some(self.dy.as_view()),
            weight: Some(self.weight.as_view()),
            ..DeviceInputs::new(&self.rows)
        };
        let outputs = DeviceOutputs {
            dx: Some(self.dx.as_view_mut()),
            dw: Some(DeviceGrad::F32(self.dw.as_view_mut())),
            sketch: Some(self.sketch.as_view_mut()),
            ..DeviceOutputs::default()
        };
        (inputs, outputs, self.workspace.as_view_mut())
    }
}

fn fresh() -> Buffers {
    Buffers::new(&plan(false))
}

/// What a call says after a change to what it gives.
fn said<'a>(
    buffers: &'a mut Buffers,
    change: impl FnOnce(&mut DeviceInputs<'a, f32>, &mut DeviceOutputs<'a, f32>),
) -> String {
    let (mut inputs, mut outputs, workspace) = buffers.split();
    change(&mut inputs, &mut outputs);
    let stream = device().context().default_stream();
    error(plan(false).run(&device(), &stream, inputs, outputs, workspace))
}

#[test]
fn a_right_call_runs() {
    if !present() {
        return;
    }
    let plan = plan(false);
    let mut buffers = Buffers::new(&plan);
    let (inputs, outputs, workspace) = buffers.split();
    let stream = device().context().default_stream();
    plan.run(&device(), &stream, inputs, outputs, workspace).unwrap();
    assert_eq!(stream.clone_dtoh(&buffers.dw).unwrap(), [ROWS as f32; OUTPUTS * INPUTS]);
    assert_eq!(stream.clone_dtoh(&buffers.dx).unwrap(), [OUTPUTS as f32; ROWS * INPUTS]);
}

#[test]
fn buffers_that_do_not_fit_are_named() {
    if !present() {
        return;
    }
    let device = device();
    let stream = device.context().default_stream();
    let short = stream.alloc_zeros::<f32>(5).unwrap();
    let mut written = stream.alloc_zeros::<f32>(5).unwrap();
    assert!(said(&mut fresh(), |inputs, _| inputs.x = None).contains("`x`"));
    assert!(said(&mut fresh(), |inputs, _| inputs.weight = None).contains("`weight`"));
    assert!(said(&mut fresh(), |_, outputs| outputs.dw = None).contains("`dw`"));
    assert!(said(&mut fresh(), |inputs, _| inputs.dy = Some(short.as_view())).contains("`dy`"));
    let text = said(&mut fresh(), |_, outputs| outputs.dx = Some(written.as_view_mut()));
    assert!(text.contains("`dx`") && text.contains("96 elements") && text.contains("got 5"));
    let text = said(&mut fresh(), |_, outputs| outputs.sq_norm = Some(written.as_view_mut()));
    assert!(text.contains("`sq_norm`") && text.contains("none"), "{text}");
    let tokens = stream.alloc_zeros::<u32>(ROWS).unwrap();
    assert!(
        said(&mut fresh(), |inputs, _| inputs.tokens = Some(tokens.as_view())).contains("`tokens`")
    );
    let mut native = stream.alloc_zeros::<f32>(OUTPUTS * INPUTS).unwrap();
    let text = said(&mut fresh(), |_, outputs| {
        outputs.dw = Some(DeviceGrad::Native(native.as_view_mut()))
    });
    assert!(text.contains("`dw`") && text.contains("format"), "{text}");
}

#[test]
fn another_format_is_refused() {
    if !present() {
        return;
    }
    let plan = plan(false);
    let mut buffers = Buffers::new(&plan);
    let stream = device().context().default_stream();
    let workspace = buffers.workspace.as_view_mut();
    let inputs = DeviceInputs::<f16>::new(&buffers.rows);
    let text = error(plan.run(&device(), &stream, inputs, DeviceOutputs::default(), workspace));
    assert!(text.contains("F32") && text.contains(&format!("{:?}", f16::DTYPE)), "{text}");
}

#[test]
fn a_workspace_too_small_or_misaligned_is_refused() {
    if !present() {
        return;
    }
    let plan = plan(false);
    let bytes = plan.workspace_bytes() as usize;
    let stream = device().context().default_stream();
    for (range, expected) in [(0..bytes - 1, "at least"), (16..bytes + 16, "multiple of 256")] {
        let mut buffers = Buffers::new(&plan);
        let (inputs, outputs, mut workspace) = buffers.split();
        let part = workspace.slice_mut(range);
        let text = error(plan.run(&device(), &stream, inputs, outputs, part));
        assert!(text.contains("`workspace`") && text.contains(expected), "{text}");
    }
}

fn routed<'a>(
    layer: &'a DeviceRouting,
    categories: &'a DeviceCategories,
) -> Option<DeviceRouted<'a>> {
    Some(DeviceRouted { layer, categories, gates: None })
}

#[test]
fn rows_and_routing_are_those_of_the_plan() {
    if !present() {
        return;
    }
    let stream = device().context().default_stream();
    // As many rows, but another's share.
    let rows = DeviceRows::upload(&stream, &Rows::new([0, 2, 8, 12]).unwrap()).unwrap();
    let text = said(&mut fresh(), |inputs, _| inputs.rows = &rows);
    assert!(text.contains("`rows`") && text.contains("6 the most of one"), "{text}");

    let layer = DeviceRouting::upload(&stream, &routing(10)).unwrap();
    let categories = DeviceCategories::upload(&stream, &[2, 0, 1], 3).unwrap();
    let text = said(&mut fresh(), |inputs, _| inputs.routing = routed(&layer, &categories));
    assert!(text.contains("`routing`") && text.contains("none"), "{text}");

    let run = |layer: &DeviceRouting, categories: &DeviceCategories| {
        let plan = plan(true);
        let mut buffers = Buffers::new(&plan);
        let (mut inputs, outputs, workspace) = buffers.split();
        inputs.routing = routed(layer, categories);
        plan.run(&device(), &stream, inputs, outputs, workspace)
    };
    run(&layer, &categories).unwrap();
    let whole = LayerRouting::open(RegionMap::whole(OUTPUTS, INPUTS), 3);
    let other = DeviceRouting::upload(&stream, &whole).unwrap();
    assert!(error(run(&other, &categories)).contains("`routing`"));
    let more = DeviceCategories::upload(&stream, &[2, 0, 1], 4).unwrap();
    assert!(error(run(&layer, &more)).contains("`categories`"));
    let fewer = DeviceCategories::upload(&stream, &[2, 0], 3).unwrap();
    assert!(error(run(&layer, &fewer)).contains("`categories`"));
    let unknown = DeviceCategories::upload(&stream, &[2, 0, 3], 3).err().unwrap().to_string();
    assert!(unknown.contains("`categories[2]`"), "{unknown}");

    // A plan for regions of a layer of another size.
    let shape = RoutingShape::of(&LayerRouting::open(RegionMap::whole(OUTPUTS, INPUTS + 1), 3));
    let problem = Linear::new(Rows::uniform(1, 1).unwrap(), INPUTS, OUTPUTS).unwrap();
    let wish = Wish { routing: Some(shape), ..Wish::default() };
    let planned = plan_linear(&problem, Dtype::F32, wish, &device().properties().unwrap());
    assert!(error(planned.map(|_| ())).contains("`routing`"));
}

#[test]
fn categories_are_replaced_only_by_known_ones() {
    if !present() {
        return;
    }
    let stream = device().context().default_stream();
    let mut categories = DeviceCategories::upload(&stream, &[2, 0, 1], 3).unwrap();
    categories.update(&stream, &[1, 1, 1]).unwrap();
    assert!(error(categories.update(&stream, &[1, 3, 1])).contains("`categories[1]`"));
    assert!(error(categories.update(&stream, &[1, 1])).contains("`categories`"));
}

/// Raw addresses are held to the same description.
#[test]
fn raw_addresses_that_are_missing_or_overlap_are_named() {
    if !present() {
        return;
    }
    let stream = device().context().default_stream();
    let plan = plan(false);
    // Never read: each of these is refused.
    let at =
        Pointers { x: 4096, dy: 8192, offsets: 16384, workspace: 32768, ..Pointers::default() };
    let said = |at: Pointers| {
        // SAFETY: nothing is launched with an address that is missing.
        error(unsafe { plan.launch(&device(), &stream, None, &at) })
    };
    assert!(said(at).contains("`weight`"));
    assert!(said(Pointers { weight: 4097, ..at }).contains("multiple of 4"));
    let all = Pointers { weight: 65536, dx: 131_072, dw: 262_144, sketch: 8192, ..at };
    let text = said(all);
    assert!(text.contains("`sketch`") && text.contains("`dy`"), "{text}");
}

#[test]
fn another_contexts_streams_and_buffers_are_refused() {
    if !present() {
        return;
    }
    let Second { context, .. } = second_context();
    let stream = context.default_stream();
    let plan = plan(false);
    let mut buffers = Buffers::new(&plan);
    let (inputs, outputs, workspace) = buffers.split();
    let text = error(plan.run(&device(), &stream, inputs, outputs, workspace));
    assert!(text.contains("`stream`") && text.contains("context"), "{text}");
    let foreign = stream.clone_htod(&[1.0_f32; ROWS * INPUTS]).unwrap();
    let mut written = stream.alloc_zeros::<f32>(ROWS * INPUTS).unwrap();
    assert!(said(&mut fresh(), |inputs, _| inputs.x = Some(foreign.as_view())).contains("`x`"));
    assert!(
        said(&mut fresh(), |_, outputs| outputs.dx = Some(written.as_view_mut())).contains("`dx`")
    );
    let rows = DeviceRows::upload(&stream, &Rows::uniform(3, ROWS / 3).unwrap()).unwrap();
    assert!(said(&mut fresh(), |inputs, _| inputs.rows = &rows).contains("`offsets`"));
    // cudarc frees a default stream's buffer on the default stream of whichever context is current, and the
    // last of these leaves theirs current: `buffers` would be freed before they are written.
    drop((foreign, written, rows));
    device().context().bind_to_thread().unwrap();
}
