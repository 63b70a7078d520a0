//! Names of a body and the special registers.

use std::collections::HashMap;

use crate::ir::{Reg, Special, Ty};

/// What a name means inside a body.
#[derive(Debug, Clone)]
pub(super) enum Binding<'a> {
    Register(Reg, Ty),
    /// Offset in the frame: `.local` and `.param` variables of a body, parameters of a function.
    Frame(u32),
    /// Offset in the kernel's parameters.
    Parameter(u32),
    Shared(u32),
    Global(u64),
    Label(usize),
    Targets(Vec<&'a str>),
    Prototype {
        returns: Vec<u32>,
        parameters: Vec<u32>,
    },
}

/// `%r<n>`: the first slot and how many.
#[derive(Debug, Clone, Copy)]
struct Numbered {
    first: Reg,
    ty: Ty,
    count: u32,
}

#[derive(Debug, Default)]
pub(super) struct Scope<'a> {
    names: HashMap<&'a str, Binding<'a>>,
    numbered: HashMap<&'a str, Numbered>,
}

impl<'a> Scope<'a> {
    pub fn bind(&mut self, name: &'a str, binding: Binding<'a>) {
        self.names.insert(name, binding);
    }

    pub fn bind_numbered(&mut self, prefix: &'a str, first: Reg, ty: Ty, count: u32) {
        self.numbered.insert(prefix, Numbered { first, ty, count });
    }

    pub fn find(&self, name: &str) -> Option<Binding<'a>> {
        if let Some(binding) = self.names.get(name) {
            return Some(binding.clone());
        }
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        // `%r10` may belong to `%r<n>`, or to `%r1<n>`: try the longest prefix first.
        (prefix.len()..name.len()).rev().find_map(|cut| {
            let numbered = self.numbered.get(&name[..cut])?;
            let index: u32 = name[cut..].parse().ok()?;
            (index < numbered.count).then(|| {
                let reg = match numbered.first {
                    Reg::P(slot) => Reg::P(slot + index),
                    Reg::R(slot) => Reg::R(slot + index),
                    Reg::D(slot) => Reg::D(slot + index),
                    Reg::Q(slot) => Reg::Q(slot + 2 * index),
                };
                Binding::Register(reg, numbered.ty)
            })
        })
    }
}

/// The special register of a name such as `%tid.x`.
pub(super) fn special(name: &str) -> Option<Special> {
    let name = name.strip_prefix('%')?;
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, "x")) => (base, Some(0)),
        Some((base, "y")) => (base, Some(1)),
        Some((base, "z")) => (base, Some(2)),
        Some((base, "w")) => (base, Some(3)),
        _ => (name, None),
    };
    if let Some(axis) = axis {
        let by_axis = match base {
            "tid" => Special::Tid(axis),
            "ntid" => Special::Ntid(axis),
            "ctaid" => Special::Ctaid(axis),
            "nctaid" => Special::Nctaid(axis),
            "clusterid" => Special::Clusterid(axis),
            "nclusterid" => Special::Nclusterid(axis),
            "cluster_ctaid" => Special::ClusterCtaid(axis),
            "cluster_nctaid" => Special::ClusterNctaid(axis),
            _ => return None,
        };
        return Some(if axis == 3 { Special::Zero } else { by_axis });
    }
    Some(match base {
        "laneid" => Special::Laneid,
        "warpid" => Special::Warpid,
        "nwarpid" => Special::Nwarpid,
        "smid" => Special::Smid,
        "nsmid" => Special::Nsmid,
        "gridid" => Special::Gridid,
        "lanemask_eq" => Special::LanemaskEq,
        "lanemask_le" => Special::LanemaskLe,
        "lanemask_lt" => Special::LanemaskLt,
        "lanemask_ge" => Special::LanemaskGe,
        "lanemask_gt" => Special::LanemaskGt,
        "clock" | "clock64" | "globaltimer" | "globaltimer_lo" => Special::Clock,
        "clock_hi" | "globaltimer_hi" => Special::ClockHigh,
        "dynamic_smem_size" => Special::DynamicSmemSize,
        "total_smem_size" | "aggr_smem_size" => Special::TotalSmemSize,
        "cluster_ctarank" => Special::ClusterCtarank,
        "cluster_nctarank" => Special::ClusterNctarank,
        "is_explicit_cluster" => Special::IsExplicitCluster,
        "reserved_smem_offset_begin" | "reserved_smem_offset_end" | "reserved_smem_offset_cap" => {
            Special::Zero
        }
        _ => return None,
    })
}
