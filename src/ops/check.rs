//! One check of every argument, before any backend sees it.

use super::{LayerOutputs, Options};
use crate::error::expect_len;
use crate::problem::{Element, GradientShape};
use crate::{Error, Result};

/// Checks routing, sketch and outputs of one layer against its gradient's shape.
pub(super) fn layer<T: Element>(
    shape: GradientShape,
    samples: usize,
    options: &Options,
    out: &LayerOutputs<T>,
) -> Result<()> {
    if !options.sample_scale.is_finite() {
        return Err(Error::argument("sample_scale", "a finite number", options.sample_scale));
    }
    if let Some(routing) = &options.routing {
        let regions = routing.layer.regions();
        let sides = (regions.outputs(), regions.inputs());
        if sides != (shape.outputs(), shape.features()) {
            let expected = format!("regions of a {} × {}", shape.outputs(), shape.features());
            return Err(Error::argument("routing.layer", expected, format!("{sides:?}")));
        }
        expect_len("routing.categories", samples, routing.categories.len())?;
        let known = routing.layer.categories();
        if let Some(n) = routing.categories.iter().position(|&id| id as usize >= known) {
            let place = format!("routing.categories[{n}]");
            let expected = format!("an id below {known}");
            return Err(Error::argument(place, expected, routing.categories[n]));
        }
        if let Some(gates) = routing.gates {
            expect_len("routing.gates", samples, gates.len())?;
            if let Some(n) = gates.iter().position(|gate| !gate.is_finite()) {
                let place = format!("routing.gates[{n}]");
                return Err(Error::argument(place, "a finite gate", gates[n]));
            }
        }
    }
    if let Some(dw) = &out.dw {
        expect_len("dw", shape.weights(), dw.len())?;
    }
    if let Some(sq_norm) = &out.sq_norm {
        expect_len("sq_norm", samples, sq_norm.len())?;
    }
    if let Some(touched) = &out.touched {
        let regions = options.routing.map_or(1, |routing| routing.layer.regions().len());
        expect_len("touched", regions, touched.len())?;
    }
    bias(shape, samples, out)?;
    sketch(samples, options, out)
}

fn bias<T: Element>(shape: GradientShape, samples: usize, out: &LayerOutputs<T>) -> Result<()> {
    if !shape.bias() {
        for (name, asked) in
            [("db", out.db.is_some()), ("sq_norm_bias", out.sq_norm_bias.is_some())]
        {
            if asked {
                return Err(Error::argument(name, "none for a layer without a bias", "a buffer"));
            }
        }
    }
    if let Some(db) = &out.db {
        expect_len("db", shape.outputs(), db.len())?;
    }
    match &out.sq_norm_bias {
        Some(sq_norm) => expect_len("sq_norm_bias", samples, sq_norm.len()),
        None => Ok(()),
    }
}

fn sketch<T: Element>(samples: usize, options: &Options, out: &LayerOutputs<T>) -> Result<()> {
    match (&out.sketch, &options.sketch) {
        (None, _) => Ok(()),
        (Some(_), None) => {
            Err(Error::argument("options.sketch", "the projection to sketch with", "none"))
        }
        (Some(out), Some(sketch)) => {
            let length = crate::problem::product("sketch", &[samples, sketch.len()])?;
            expect_len("sketch", length, out.len())
        }
    }
}

/// Checks an optional `dx` and the weight it needs.
pub(super) fn dx<T>(
    dx: &Option<&mut [T]>,
    x_len: usize,
    weight: Option<&[T]>,
    weight_len: usize,
) -> Result<()> {
    if let Some(weight) = weight {
        expect_len("weight", weight_len, weight.len())?;
    }
    let Some(dx) = dx else { return Ok(()) };
    expect_len("dx", x_len, dx.len())?;
    match weight {
        Some(_) => Ok(()),
        None => Err(Error::argument("weight", "the weight, since dx is asked for", "none")),
    }
}

/// Checks that every token names a row of the table.
pub(super) fn tokens(tokens: &[u32], vocabulary: usize) -> Result<()> {
    match tokens.iter().position(|&token| token as usize >= vocabulary) {
        None => Ok(()),
        Some(r) => {
            let expected = format!("a token below {vocabulary}");
            Err(Error::argument(format!("tokens[{r}]"), expected, tokens[r]))
        }
    }
}
