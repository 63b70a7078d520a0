//! What device buffers hold cannot make a safe call touch memory beside them.

use gradroute::cuda::{
    DeviceGrad, DeviceInputs, DeviceOutputs, DeviceRows, Plan, Wish, plan_embedding,
};
use gradroute::ops::plan::Request;
use gradroute::problem::{Dtype, Embedding, Rows};
use gradroute::projection::Sketch;

use crate::support::{device, present};

const VOCABULARY: usize = 7;
const FEATURES: usize = 40;
const SAMPLES: usize = 2;

/// `dw`, squared norms and sketches of tokens and a gradient of integers.
fn backward(tokens: &[u32], dy: &[f32]) -> [Vec<f32>; 3] {
    let rows = Rows::new([0, 5, tokens.len() as u64]).unwrap();
    let problem = Embedding::new(rows.clone(), VOCABULARY, FEATURES).unwrap();
    let sketch = Sketch::count(64, 3, 0).unwrap();
    let request = Request { dx: false, db: false, ..Request::everything() };
    let wish = Wish { request, sketch: Some(sketch), ..Wish::default() };
    let plan = plan_embedding(&problem, Dtype::F32, wish).unwrap();
    let device = device();
    let stream = device.context().default_stream();
    let (tokens, dy) = (stream.clone_htod(tokens).unwrap(), stream.clone_htod(dy).unwrap());
    let rows = DeviceRows::upload(&stream, &rows).unwrap();
    let filled = |length: usize| stream.clone_htod(&vec![f32::NAN; length]).unwrap();
    let mut out = [VOCABULARY * FEATURES, SAMPLES, SAMPLES * 64].map(filled);
    let mut workspace = stream.alloc_zeros::<u8>(plan.workspace_bytes() as usize).unwrap();
    let inputs = DeviceInputs {
        tokens: Some(tokens.as_view()),
        dy: Some(dy.as_view()),
        ..DeviceInputs::new(&rows)
    };
    let [dw, sq_norm, sketch] = out.each_mut();
    let outputs = DeviceOutputs {
        dw: Some(DeviceGrad::F32(dw.as_view_mut())),
        sq_norm: Some(sq_norm.as_view_mut()),
        sketch: Some(sketch.as_view_mut()),
        ..DeviceOutputs::default()
    };
    plan.run(&device, &stream, inputs, outputs, workspace.as_view_mut()).unwrap();
    out.map(|values| stream.clone_dtoh(&values).unwrap())
}

/// As if their rows' gradients were 0: no memory beside the table is written, which softcuda would
/// report.
#[test]
fn tokens_outside_the_vocabulary_have_no_gradient() {
    if !present() {
        return;
    }
    let dy: Vec<f32> = (0..8 * FEATURES).map(|at| (at * 7 % 11) as f32 - 5.0).collect();
    let tokens = [1, VOCABULARY as u32, 6, 1, u32::MAX, u32::MAX, 0, VOCABULARY as u32 + 1];
    let strange = backward(&tokens, &dy);
    let (mut known, mut silenced) = (tokens, dy.clone());
    for row in [1, 4, 5, 7] {
        known[row] = 3;
        silenced[row * FEATURES..(row + 1) * FEATURES].fill(0.0);
    }
    assert_eq!(strange, backward(&known, &silenced));
    // Not because nothing is: the other tokens have theirs.
    assert!(strange[0][6 * FEATURES..].iter().any(|&value| value != 0.0));
    assert_ne!(strange, backward(&known, &dy));
}
