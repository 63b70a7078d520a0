//! Plan and launches of an embedding.

use std::fmt;

use super::buffers::{Operand, Operands};
use super::call::{Call, launch};
use super::device::Grid;
use super::generated::GRADROUTE_THREADS;
use super::plan::{Common, Parts, Wish};
use super::queue::{Plan, Queue};
use crate::problem::{Dtype, Embedding};
use crate::{Error, Result};

/// How an embedding's backward pass runs on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingPlan {
    common: Common,
    first: u64,
    columns: u64,
    workspace_bytes: u64,
}

/// Plans an embedding's backward pass.
///
/// # Errors
/// [`Error::Argument`] for a batch larger than a launch can be.
pub fn plan_embedding(problem: &Embedding, dtype: Dtype, wish: Wish) -> Result<EmbeddingPlan> {
    let (rows, shape) = (problem.rows(), problem.gradient());
    let mut common = Common::new(shape, rows, dtype, wish)?;
    common.operands = Operands {
        dy: Operand::new(common.forms(), common.operands.dy.elements),
        tokens: Operand::new(common.forms(), rows.total() as u64),
        ..Operands::NONE
    };
    let most = i32::MAX as usize;
    if rows.total() > most {
        return Err(Error::argument("offsets", format!("at most {most} rows"), rows.total()));
    }
    let (rows, forms) = (rows.total() as u64, common.forms());
    let mut take = Parts::default();
    let first = take.take(forms, rows);
    let columns = take.take(forms, 4 * rows * u64::from(common.layer.outputs));
    Ok(EmbeddingPlan { common, first, columns, workspace_bytes: take.bytes })
}

impl Queue for EmbeddingPlan {
    fn common(&self) -> &Common {
        &self.common
    }

    fn queue(&self, call: &Call) -> Result<()> {
        if !self.common.forms() {
            return Ok(());
        }
        let (layer, at, [route, _, map]) = (call.layer(), call.at, call.tables);
        let request = &self.common.wish.request;
        let [first, g] = [self.first, self.columns].map(|part| call.work(part));
        let grid = Grid::plain(layer.rows as u32, layer.outputs.div_ceil(GRADROUTE_THREADS));
        let any = layer.rows > 0 && layer.outputs > 0;
        if any {
            launch! { call, "embedding_backward", &call.name("embedding_columns"), grid;
            layer, at.tokens, at.dy, at.offsets, first, g }?;
        }
        let weights = u64::from(layer.outputs) * u64::from(layer.inputs);
        if request.dw && weights > 0 && !self.common.wish.accumulate {
            // Tokens that do not occur have no gradient: a sum of no parts.
            let blocks = weights.div_ceil(u64::from(GRADROUTE_THREADS)).min(4096) as u32;
            launch! { call, "reduce", &call.name("reduce_totals"), Grid::plain(blocks, 1);
            layer, 0_u64, 0_u32, at.dw }?;
        }
        if request.dw && any {
            launch! { call, "embedding_backward", &call.name("embedding_dw"), grid;
            layer, at.tokens, at.offsets, first, g, at.categories, route, at.gates, map, at.dw }?;
        }
        if layer.samples == 0 {
            return Ok(());
        }
        if request.norms {
            let grid = Grid::plain(layer.samples, 1);
            launch! { call, "embedding_backward", "embedding_squares", grid;
            layer, at.offsets, first, g, at.sq_norm }?;
        }
        call.reduce_sketches(0, 0)?;
        if self.common.sketched() && any {
            let grid = Grid { threads: 32, ..Grid::plain(layer.samples, 1) };
            let factor = self.common.sketch_factor();
            launch! { call, "embedding_backward", "embedding_sketches", grid;
            layer, at.tokens, at.offsets, first, g, at.categories, route, at.gates, map, factor,
            at.sketch }?;
        }
        Ok(())
    }
}

impl Plan for EmbeddingPlan {
    fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes
    }
}

impl fmt::Display for EmbeddingPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a block for each of {} rows", self.common.layer.rows)?;
        write!(f, ", {} KiB of workspace", self.workspace_bytes.div_ceil(1024))
    }
}
