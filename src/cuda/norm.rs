//! Plan and launches of a normalisation.

use std::fmt;

use super::buffers::Operand;
use super::call::{Call, launch};
use super::device::Grid;
use super::generated as abi;
use super::generated::GradrouteNorm;
use super::plan::{Common, Parts, Wish};
use super::queue::{Plan, Queue};
use crate::Result;
use crate::problem::{Dtype, Norm, NormKind};

/// How a normalisation's backward pass runs on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormPlan {
    common: Common,
    norm: GradrouteNorm,
    sets: u32,
    statistics: u64,
    gamma: u64,
    beta: u64,
    workspace_bytes: u64,
}

/// Plans a normalisation's backward pass.
///
/// # Errors
/// [`crate::Error::Argument`] for a batch larger than a launch can be.
pub fn plan_norm(problem: &Norm, dtype: Dtype, wish: Wish) -> Result<NormPlan> {
    let (rows, shape) = (problem.rows(), problem.gradient());
    let mut common = Common::new(shape, rows, dtype, wish)?;
    let numbers = (rows.total() * problem.features()) as u64;
    let (dx, columns) = (wish.request.dx, common.forms() || common.bias_asked());
    common.operands.x = Operand::new(dx || columns, numbers);
    let (features, longest) = (problem.features(), rows.longest());
    let (kind, groups) = match problem.kind() {
        NormKind::Layer => (abi::GRADROUTE_NORM_LAYER, 1),
        NormKind::Rms => (abi::GRADROUTE_NORM_RMS, 1),
        NormKind::Group { groups } => (abi::GRADROUTE_NORM_GROUP, groups),
    };
    let channels = features / groups;
    let (sets, length) = match kind {
        abi::GRADROUTE_NORM_GROUP => (rows.samples() * groups, channels * longest),
        _ => (rows.total(), features),
    };
    let most = i32::MAX as usize;
    let sets = u32::try_from(sets).ok().filter(|&sets| sets as usize <= most).ok_or_else(|| {
        crate::Error::argument("offsets", format!("at most {most} sets to normalise"), sets)
    })?;
    let norm = GradrouteNorm {
        length: length as u64,
        kind,
        groups: groups as u32,
        channels: channels as u32,
        eps: problem.eps(),
    };
    let mut take = Parts::default();
    let column = 4 * u64::from(common.layer.samples) * u64::from(common.layer.outputs);
    let statistics = take.take(columns || dx, 16 * u64::from(sets));
    let gamma = take.take(columns, column);
    let beta = take.bias(&common);
    Ok(NormPlan { common, norm, sets, statistics, gamma, beta, workspace_bytes: take.bytes })
}

impl Queue for NormPlan {
    fn common(&self) -> &Common {
        &self.common
    }

    fn queue(&self, call: &Call) -> Result<()> {
        let (layer, norm, at, [_, flow, map]) = (call.layer(), self.norm, call.at, call.tables);
        let (forms, bias) = (self.common.forms(), self.common.bias_asked());
        let statistics = call.work(self.statistics);
        let any = self.sets > 0 && norm.length > 0;
        if any && (forms || bias || self.common.wish.request.dx) {
            let grid = Grid::plain(self.sets, 1);
            launch! { call, "norm_backward", &call.name("norm_statistics"), grid;
            norm, at.x, statistics }?;
        }
        if any && self.common.wish.request.dx {
            launch! { call, "norm_backward", &call.name("norm_dx"), Grid::plain(self.sets, 1);
            layer, norm, at.x, at.dy, at.weight, at.offsets, at.categories, flow, map, statistics,
            at.dx }?;
        }
        let [gamma, beta] = [self.gamma, self.beta].map(|part| call.work(part));
        if (forms || bias) && layer.outputs > 0 && layer.samples > 0 {
            // Eight channels or 32 features a block.
            let wide = if norm.kind == abi::GRADROUTE_NORM_GROUP { 8 } else { 32 };
            let grid = Grid::plain(layer.outputs.div_ceil(wide), layer.samples);
            let beta = if bias { beta } else { 0 };
            launch! { call, "norm_backward", &call.name("norm_columns"), grid;
            layer, norm, at.x, at.dy, at.offsets, statistics, gamma, beta }?;
        }
        call.reduce_sketches(0, 0)?;
        if forms {
            let request = &self.common.wish.request;
            let dw = if request.dw { at.dw } else { 0 };
            call.column(gamma, 0, dw, if request.norms { at.sq_norm } else { 0 })?;
        }
        if bias { call.bias(beta) } else { Ok(()) }
    }
}

impl Plan for NormPlan {
    fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes
    }
}

impl fmt::Display for NormPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sets normalised, two passes over each", self.sets)?;
        write!(f, ", {} KiB of workspace", self.workspace_bytes.div_ceil(1024))
    }
}
