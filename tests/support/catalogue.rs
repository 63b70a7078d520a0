//! Problems of every op.

use gradroute::problem::{
    Conv2d, Conv2dSpec, Embedding, Linear, Lora, Norm, Padding, PaddingMode, Rows,
};

use super::case::Problem;
use super::run::Tested;

/// A problem and what it is called in a failure.
pub type Named = (String, Problem);

/// Row groupings: uniform, ragged with empty samples, one sample, one row each, all empty, none.
pub fn groupings() -> Vec<Rows> {
    let mut all: Vec<Rows> = [(3, 4), (1, 7), (5, 1), (3, 0), (0, 3), (2, 70)]
        .map(|(samples, rows)| Rows::uniform(samples, rows).unwrap())
        .into();
    all.push(Rows::new([0, 0, 1, 6, 6, 9]).unwrap());
    all.push(Rows::new([0, 1, 34, 36, 36]).unwrap());
    all
}

pub fn linear(rows: Rows, inputs: usize, outputs: usize, bias: bool) -> Named {
    let name = format!("linear {inputs} → {outputs}, rows {:?}, bias {bias}", rows.offsets());
    (name, Problem::Linear(Linear::new(rows, inputs, outputs).unwrap().with_bias(bias)))
}

/// Linear layers of odd sizes over every grouping.
pub fn linears() -> Vec<Named> {
    let mut all = Vec::new();
    for rows in groupings() {
        for (at, (inputs, outputs)) in
            [(5, 7), (8, 8), (17, 33), (1, 3), (40, 2)].into_iter().enumerate()
        {
            all.push(linear(rows.clone(), inputs, outputs, at % 2 == 0));
        }
    }
    all
}

/// Linear layers around the sizes that tiles have.
pub fn tile_edges() -> Vec<Named> {
    let groupings = [
        Rows::uniform(3, 5),
        Rows::uniform(4, 1),
        Rows::uniform(2, 65),
        Rows::new([0, 0, 64, 127]),
    ];
    let sizes = [(63, 65), (64, 64), (65, 127), (127, 129), (129, 63), (128, 16), (15, 128)];
    let mut all = Vec::new();
    for rows in groupings.map(Result::unwrap) {
        for (at, (inputs, outputs)) in sizes.into_iter().enumerate() {
            all.push(linear(rows.clone(), inputs, outputs, at % 2 == 0));
        }
    }
    all
}

/// Every kind of convolution.
pub fn convolutions() -> Vec<Named> {
    let base = Conv2dSpec {
        samples: 3,
        in_channels: 4,
        out_channels: 6,
        size: [7, 6],
        kernel: [3, 3],
        padding: Padding::symmetric(1, 1),
        ..Conv2dSpec::default()
    };
    let circular = PaddingMode::Circular;
    let asymmetric = Padding { top: 0, bottom: 2, left: 3, right: 1 };
    let specs = [
        ("plain", base),
        ("bias", Conv2dSpec { bias: true, ..base }),
        ("one sample", Conv2dSpec { samples: 1, ..base }),
        ("no padding", Conv2dSpec { padding: Padding::default(), ..base }),
        ("pointwise", Conv2dSpec { kernel: [1, 1], padding: Padding::default(), ..base }),
        ("pointwise with padding", Conv2dSpec { kernel: [1, 1], bias: true, ..base }),
        ("pointwise, stride", Conv2dSpec { kernel: [1, 1], stride: [2, 3], ..base }),
        ("groups", Conv2dSpec { groups: 2, bias: true, ..base }),
        ("depthwise", Conv2dSpec { groups: 4, out_channels: 4, ..base }),
        ("depthwise, multiplier", Conv2dSpec { groups: 4, out_channels: 8, bias: true, ..base }),
        ("dilation", Conv2dSpec { dilation: [2, 2], padding: Padding::symmetric(2, 1), ..base }),
        (
            "stride with remainder",
            Conv2dSpec { stride: [3, 2], padding: Padding::default(), ..base },
        ),
        ("stride 2", Conv2dSpec { stride: [2, 2], bias: true, ..base }),
        ("asymmetric", Conv2dSpec { padding: asymmetric, ..base }),
        ("same", Conv2dSpec { padding: Padding::same([3, 3], [1, 1]), ..base }),
        (
            "same, even and dilated",
            Conv2dSpec {
                kernel: [2, 4],
                dilation: [3, 1],
                padding: Padding::same([2, 4], [3, 1]),
                ..base
            },
        ),
        ("circular", Conv2dSpec { padding_mode: circular, bias: true, ..base }),
        (
            "circular, asymmetric, whole image",
            Conv2dSpec {
                padding_mode: circular,
                padding: Padding { top: 7, bottom: 0, left: 1, right: 6 },
                ..base
            },
        ),
        (
            "circular, groups, dilation, stride",
            Conv2dSpec {
                padding_mode: circular,
                groups: 2,
                dilation: [2, 1],
                stride: [2, 2],
                padding: Padding { top: 2, bottom: 3, left: 1, right: 0 },
                bias: true,
                ..base
            },
        ),
        (
            // Column 0 sees pixels 1, 0 and 3.
            "circular, dilation past the middle",
            Conv2dSpec {
                padding_mode: circular,
                size: [7, 4],
                dilation: [1, 3],
                padding: Padding::same([3, 3], [1, 3]),
                ..base
            },
        ),
        (
            "depthwise, dilation, stride, asymmetric",
            Conv2dSpec {
                groups: 4,
                out_channels: 4,
                dilation: [1, 2],
                stride: [3, 2],
                padding: asymmetric,
                ..base
            },
        ),
        ("wide padding", Conv2dSpec { padding: Padding::symmetric(5, 4), ..base }),
        (
            "whole image",
            Conv2dSpec { kernel: [7, 6], padding: Padding::default(), bias: true, ..base },
        ),
        ("flat kernel", Conv2dSpec { kernel: [1, 5], padding: Padding::symmetric(0, 2), ..base }),
        ("one pixel", Conv2dSpec { size: [1, 1], ..base }),
        (
            "odd channels",
            Conv2dSpec { in_channels: 17, out_channels: 33, size: [4, 5], bias: true, ..base },
        ),
        (
            "many channels",
            Conv2dSpec { samples: 2, in_channels: 64, out_channels: 65, size: [3, 3], ..base },
        ),
        ("larger image", Conv2dSpec { samples: 2, size: [19, 17], bias: true, ..base }),
    ];
    specs
        .map(|(name, spec)| {
            (format!("conv2d, {name}"), Problem::Conv2d(Conv2d::new(spec).unwrap()))
        })
        .into()
}

/// Normalisations; `exact` ones have sets whose mean and deviation can be exact.
pub fn norms(exact: bool) -> Vec<Named> {
    let (features, eps): (&[usize], f32) =
        if exact { (&[2, 8, 64, 128], 0.0) } else { (&[3, 8, 17, 65, 128], 1e-5) };
    let mut all = Vec::new();
    for rows in groupings() {
        for &features in features {
            let layer = Norm::layer(rows.clone(), features, eps).unwrap();
            let rms = Norm::rms(rows.clone(), features, eps).unwrap();
            let context = format!("{features}, rows {:?}", rows.offsets());
            all.push((format!("layer norm {context}"), layer.clone()));
            all.push((format!("layer norm, no bias, {context}"), layer.with_bias(false)));
            all.push((format!("rms norm {context}"), rms.clone()));
            all.push((format!("rms norm, bias, {context}"), rms.with_bias(true)));
        }
    }
    let groups: &[[usize; 4]] = match exact {
        true => &[[3, 8, 4, 2], [2, 16, 16, 16], [1, 4, 2, 1], [0, 8, 4, 2], [2, 8, 0, 2]],
        false => &[[3, 6, 5, 2], [2, 12, 9, 4], [1, 8, 16, 8], [4, 6, 35, 1], [2, 66, 7, 3]],
    };
    for &[samples, channels, positions, groups] in groups {
        let norm = Norm::group(samples, channels, positions, groups, eps).unwrap();
        let name = format!("group norm {samples} × {channels} × {positions}, {groups} groups");
        all.push((format!("{name}, no bias"), norm.clone().with_bias(false)));
        all.push((name, norm));
    }
    all.into_iter().map(|(name, norm)| (name, Problem::Norm(norm))).collect()
}

/// Embeddings, most of them with repeated tokens.
pub fn embeddings() -> Vec<Named> {
    let mut all = Vec::new();
    for rows in groupings() {
        for (vocabulary, features) in [(1, 1), (5, 8), (3, 17), (65, 33)] {
            let name = format!("embedding {vocabulary} × {features}, rows {:?}", rows.offsets());
            let problem = Embedding::new(rows.clone(), vocabulary, features).unwrap();
            all.push((name, Problem::Embedding(problem)));
        }
    }
    all
}

/// LoRA branches.
pub fn loras() -> Vec<Named> {
    let mut all = Vec::new();
    for rows in groupings() {
        for (inputs, outputs, rank) in
            [(5, 7, 2), (16, 9, 1), (33, 17, 8), (6, 40, 4), (24, 40, 20)]
        {
            let name = format!("lora {inputs} → {rank} → {outputs}, rows {:?}", rows.offsets());
            let problem = Lora::new(rows.clone(), inputs, outputs, rank, 0.5).unwrap();
            all.push((name, Problem::Lora(problem)));
        }
    }
    // Samples without rows before and between others of many.
    let rows = Rows::new([0, 0, 17, 17, 20]).unwrap();
    let gaps = Lora::new(rows, 6, 10, 4, 0.5).unwrap();
    all.push(("lora with gaps".into(), Problem::Lora(gaps)));
    all
}

/// Those of a backend; with `GRADROUTE_CASES=word` only those whose name holds the word, to look at one
/// problem alone.
fn covered<B: Tested>(mut problems: Vec<Named>) -> Vec<Named> {
    problems.retain(|(_, problem)| B::covers(problem));
    if let Ok(word) = std::env::var("GRADROUTE_CASES") {
        problems.retain(|(name, _)| name.contains(&word));
        println!("only {} problems: GRADROUTE_CASES={word}", problems.len());
    }
    problems
}

/// Every op of a backend, with or without data that is exact.
pub fn everything<B: Tested>(exact: bool) -> Vec<Named> {
    let mut all =
        [linears(), tile_edges(), convolutions(), norms(exact), embeddings(), loras()].concat();
    // Single rows, wider than a block that counts them, and two of them for a block.
    all.push(linear(Rows::new([0, 1, 1, 2, 3]).unwrap(), 300, 290, true));
    // More samples than a warp has lanes, twice over.
    all.push(linear(Rows::uniform(70, 2).unwrap(), 17, 33, true));
    // The most rows whose norm comes from their products with each other, and more than one group of 16.
    all.push(linear(Rows::new([0, 20, 20, 52]).unwrap(), 17, 33, true));
    covered::<B>(all)
}

/// One problem of each op of a backend with several samples and no empty one: for properties.
pub fn representatives<B: Tested>() -> Vec<Named> {
    let rows = Rows::new([0, 3, 4, 9, 11, 15, 16]).unwrap();
    let one_each = Rows::uniform(6, 1).unwrap();
    let long = Rows::uniform(6, 40).unwrap();
    let conv = Conv2dSpec {
        samples: 6,
        in_channels: 8,
        out_channels: 12,
        size: [6, 5],
        kernel: [3, 3],
        padding: Padding::symmetric(1, 1),
        bias: true,
        ..Conv2dSpec::default()
    };
    let conv2d =
        |name: &str, spec| (format!("conv2d {name}"), Problem::Conv2d(Conv2d::new(spec).unwrap()));
    let norm = |name: &str, norm: gradroute::Result<Norm>| {
        (format!("{name} norm"), Problem::Norm(norm.unwrap().with_bias(true)))
    };
    covered::<B>(vec![
        linear(rows.clone(), 10, 14, true),
        linear(one_each, 33, 18, true),
        linear(long.clone(), 24, 20, false),
        conv2d("plain", conv),
        conv2d("groups", Conv2dSpec { groups: 4, stride: [2, 2], ..conv }),
        conv2d("circular", Conv2dSpec { padding_mode: PaddingMode::Circular, ..conv }),
        norm("layer", Norm::layer(rows.clone(), 16, 0.0)),
        norm("rms", Norm::rms(rows.clone(), 16, 0.0)),
        norm("group", Norm::group(6, 8, 4, 2, 0.0)),
        ("embedding".into(), Problem::Embedding(Embedding::new(rows.clone(), 6, 9).unwrap())),
        ("lora".into(), Problem::Lora(Lora::new(rows, 12, 10, 4, 0.5).unwrap())),
        ("lora of many rows".into(), Problem::Lora(Lora::new(long, 12, 10, 4, 0.5).unwrap())),
    ])
}

/// Every size in `0..=3`, of every op of a backend.
pub fn small<B: Tested>() -> Vec<Named> {
    let mut all = Vec::new();
    for code in 0..256 {
        let [a, b, c, d] = [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6];
        let rows = Rows::uniform(a, b).unwrap();
        all.push(linear(rows.clone(), c, d, code % 2 == 0));
        let named = |name: &str, problem| (format!("small {name} {a} {b} {c} {d}"), problem);
        if let Ok(problem) = Lora::new(rows.clone(), c, d, 1 + code % 3, 2.0) {
            all.push(named("lora", Problem::Lora(problem)));
        }
        if c > 0 {
            let problem = Embedding::new(rows.clone(), c, d).unwrap();
            all.push(named("embedding", Problem::Embedding(problem)));
        }
        if d == 0 {
            all.push(named("layer", Problem::Norm(Norm::layer(rows.clone(), c, 0.1).unwrap())));
            all.push(named("rms", Problem::Norm(Norm::rms(rows, c, 0.1).unwrap())));
        }
        if let Ok(problem) = Norm::group(a, b, c, d, 0.1) {
            all.push(named("group", Problem::Norm(problem)));
        }
        for (at, (kernel, pad)) in [(1, 0), (2, 0), (2, 1), (3, 1)].into_iter().enumerate() {
            if B::SLOW && at != (code ^ code >> 2 ^ code >> 4 ^ code >> 6) & 3 {
                continue;
            }
            let spec = Conv2dSpec {
                samples: (code + kernel) % 3,
                in_channels: a,
                out_channels: b,
                size: [c, d],
                kernel: [kernel, 1 + code % kernel],
                padding: Padding::symmetric(pad, pad),
                bias: code % 2 == 1,
                ..Conv2dSpec::default()
            };
            if let Ok(problem) = Conv2d::new(spec) {
                all.push(named("conv2d", Problem::Conv2d(problem)));
            }
        }
    }
    covered::<B>(all)
}
