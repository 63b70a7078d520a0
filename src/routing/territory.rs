//! Where the owned regions are: parts of layers, carried on to the layers that read them.

use std::ops::Range;

use super::pattern::join;
use super::policy::{OwnedRegion, RegionPart, error};
use super::{Categories, Features, LayerKind, LayerSpec, ModelLayout, Region, RegionMap};
use crate::problem::NormKind;
use crate::{Error, Result};

/// What one layer holds of the policy's regions.
#[derive(Clone, Debug, Default)]
pub(super) struct Territory {
    /// Policy region and its rectangles, in the policy's order.
    pub(super) owned: Vec<(usize, Vec<Region>)>,
    /// Features of the activation the layer reads, with the policy region they belong to.
    pub(super) read: Vec<(Range<usize>, usize)>,
    /// Its output features that belong to a region for all inputs.
    written: Vec<(Range<usize>, usize)>,
}

impl Territory {
    /// The layer's regions; policy region `owned[k].0` is region `k + 1`.
    pub(super) fn map(&self, layer: &LayerSpec) -> Result<RegionMap> {
        let owned = self.owned.iter().map(|(_, rectangles)| rectangles.clone()).collect();
        RegionMap::unions(layer.outputs, layer.features, owned)
    }
}

/// The territory of every layer.
pub(super) fn claim(
    layout: &ModelLayout,
    categories: &Categories,
    regions: &[OwnedRegion],
) -> Result<Vec<Territory>> {
    let mut map = vec![Territory::default(); layout.layers().len()];
    for (r, region) in regions.iter().enumerate() {
        let owner: Vec<u32> = categories
            .ids()
            .filter(|&id| matches!(categories.labels(id), [path] if path.within(&region.owner)))
            .collect();
        if owner.is_empty() {
            let problem = format!("no category lies in its owner's subtree, `{}`", region.owner);
            return Err(error(format!("region {:?}", region.name), problem));
        }
        let mut claims = Claims { layout, region, r, owner, map: &mut map };
        region.parts.iter().try_for_each(|part| claims.part(part))?;
        for layer in &mut map {
            tidy(&mut layer.read, r);
            tidy(&mut layer.written, r);
        }
        let acts = map.iter().any(|layer| layer.read.iter().any(|(_, of)| *of == r));
        if region.switch.public_off() > 0.0 && !acts {
            let problem = "no layer reads any of its features, so its switch has nowhere to act";
            return Err(error(format!("region {:?}", region.name), problem));
        }
    }
    check_sums(layout, regions, &map)?;
    check_overlaps(layout, regions, &map)?;
    Ok(map)
}

/// One region's claims on the layers.
struct Claims<'a> {
    layout: &'a ModelLayout,
    region: &'a OwnedRegion,
    r: usize,
    owner: Vec<u32>,
    map: &'a mut [Territory],
}

impl Claims<'_> {
    fn part(&mut self, part: &RegionPart) -> Result<()> {
        let layers = self.layout.layers();
        let matched: Vec<usize> =
            (0..layers.len()).filter(|&at| part.layers.matches(&layers[at].path)).collect();
        if matched.is_empty() {
            let place = format!("region {:?}", self.region.name);
            return Err(error(place, format!("no layer matches `{}`", part.layers.as_str())));
        }
        for at in matched {
            let layer = &layers[at];
            let outputs = self.resolve(at, "output", part.outputs.as_ref(), layer.outputs)?;
            let inputs = self.resolve(at, "input", part.inputs.as_ref(), layer.features)?;
            if part.inputs.is_some() && matches!(layer.kind, LayerKind::Conv2d { groups: 2.. }) {
                let problem = "the input features of a grouped convolution are counted per \
                               group, so a range of them is no range of channels; own outputs";
                return Err(self.mistake(at, problem));
            }
            for o in &outputs {
                for i in &inputs {
                    self.own(at, Region { outputs: o.clone(), inputs: i.clone() });
                }
            }
            match (&part.outputs, &part.inputs) {
                (Some(_), None) => {
                    outputs.into_iter().try_for_each(|range| self.leave(at, range))?;
                }
                (None, Some(_)) if layer.input_width() == Some(layer.features) => {
                    self.map[at].read.extend(inputs.into_iter().map(|range| (range, self.r)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The region owns output features of a layer: on to the layers that read them.
    fn leave(&mut self, at: usize, range: Range<usize>) -> Result<()> {
        let layers = self.layout.layers();
        if let LayerKind::Norm(kind) = layers[at].kind {
            self.check_norm(at, kind, &range)?;
        }
        self.map[at].written.push((range.clone(), self.r));
        let path = &layers[at].path;
        let readers: Vec<usize> =
            (0..layers.len()).filter(|&to| layers[to].reads.contains(path)).collect();
        if readers.is_empty() && self.region.switch.public_off() > 0.0 {
            let problem = format!(
                "no layer says that it reads output features {range:?}, so the region's switch \
                 has nowhere to act there"
            );
            return Err(self.mistake(at, problem));
        }
        readers.into_iter().try_for_each(|to| self.enter(to, range.clone()))
    }

    /// The region owns features of the activation a layer reads.
    fn enter(&mut self, at: usize, range: Range<usize>) -> Result<()> {
        let layer = &self.layout.layers()[at];
        if self.map[at].read.contains(&(range.clone(), self.r)) {
            return Ok(()); // been here: several parts, or a sum
        }
        self.map[at].read.push((range.clone(), self.r));
        match layer.kind {
            LayerKind::Norm(_) => {
                self.own(at, Region { outputs: range.clone(), inputs: 0..1 });
                self.leave(at, range)
            }
            LayerKind::Conv2d { groups: groups @ 2.. } => {
                let (from, to) = (layer.features, layer.outputs / groups);
                if !aligned(&range, from) {
                    let problem = format!(
                        "its groups of {from} input channels would mix the region's channels \
                         {range:?} with public ones"
                    );
                    return Err(self.mistake(at, problem));
                }
                let outputs = range.start / from * to..range.end / from * to;
                self.own(at, Region { outputs: outputs.clone(), inputs: 0..layer.features });
                self.leave(at, outputs)
            }
            LayerKind::Linear | LayerKind::Conv2d { .. } => {
                self.own(at, Region { outputs: 0..layer.outputs, inputs: range });
                Ok(())
            }
            LayerKind::Embedding => Err(self.mistake(at, "an embedding reads tokens")),
        }
    }

    fn check_norm(&self, at: usize, kind: NormKind, range: &Range<usize>) -> Result<()> {
        let features = self.layout.layers()[at].outputs;
        let (name, groups) = match kind {
            NormKind::Group { groups } => ("GroupNorm", groups),
            NormKind::Layer => ("LayerNorm", 1),
            NormKind::Rms => ("RMSNorm", 1),
        };
        let group = features / groups;
        if aligned(range, group) {
            return Ok(());
        }
        let problem = format!(
            "{name} over {group} features at a time would mix the region's features {range:?} \
             with public ones; use a GroupNorm whose groups end where the region does"
        );
        Err(self.mistake(at, problem))
    }

    fn resolve(
        &self,
        at: usize,
        side: &str,
        features: Option<&Features>,
        width: usize,
    ) -> Result<Vec<Range<usize>>> {
        let all = Features::Ranges(vec![(0, None)]);
        let problem = |problem| self.mistake(at, format!("{side} {problem}"));
        features.unwrap_or(&all).resolve(width, &self.owner).map_err(problem)
    }

    fn own(&mut self, at: usize, rectangle: Region) {
        let owned = &mut self.map[at].owned;
        match owned.iter_mut().find(|(r, _)| *r == self.r) {
            Some((_, rectangles)) if rectangles.contains(&rectangle) => {}
            Some((_, rectangles)) => rectangles.push(rectangle),
            None => owned.push((self.r, vec![rectangle])),
        }
    }

    fn mistake(&self, at: usize, problem: impl Into<String>) -> Error {
        let (region, layer) = (&self.region.name, &self.layout.layers()[at].path);
        error(format!("region {region:?}, layer {layer:?}"), problem)
    }
}

/// Sorts and joins the ranges of the latest region, `r`, which stand last.
fn tidy(ranges: &mut Vec<(Range<usize>, usize)>, r: usize) {
    let first = ranges.partition_point(|(_, of)| *of < r);
    let mut latest: Vec<_> = ranges.drain(first..).map(|(range, _)| range).collect();
    join(&mut latest);
    ranges.extend(latest.into_iter().map(|range| (range, r)));
}

/// Whether a range ends at multiples of `step`.
fn aligned(range: &Range<usize>, step: usize) -> bool {
    range.start.is_multiple_of(step) && range.end.is_multiple_of(step)
}

/// A region of a sum must be a region of everything that is added up.
fn check_sums(layout: &ModelLayout, regions: &[OwnedRegion], map: &[Territory]) -> Result<()> {
    let written = |path: &str, r: usize| -> Vec<&Range<usize>> {
        let layer = layout.index(path).map(|at| &map[at]);
        let all = layer.into_iter().flat_map(|layer| &layer.written);
        all.filter(|(_, of)| *of == r).map(|(range, _)| range).collect()
    };
    for layer in layout.layers() {
        for (r, region) in regions.iter().enumerate() {
            for pair in layer.reads.windows(2) {
                let [ours, theirs] = [written(&pair[0], r), written(&pair[1], r)];
                if ours != theirs {
                    let place = format!("region {:?}, layer {:?}", region.name, layer.path);
                    let problem = format!(
                        "it reads {} and {} added up, but the region has features {ours:?} of \
                         the one and {theirs:?} of the other",
                        pair[0], pair[1]
                    );
                    return Err(error(place, problem));
                }
            }
        }
    }
    Ok(())
}

fn check_overlaps(layout: &ModelLayout, regions: &[OwnedRegion], map: &[Territory]) -> Result<()> {
    for (layer, territory) in layout.layers().iter().zip(map) {
        for (k, (r, ours)) in territory.owned.iter().enumerate() {
            for (other, theirs) in &territory.owned[..k] {
                if ours.iter().any(|ours| theirs.iter().any(|theirs| ours.overlaps(theirs))) {
                    let names = [&regions[*r].name, &regions[*other].name];
                    let place = format!("region {:?}, layer {:?}", names[0], layer.path);
                    return Err(error(place, format!("it overlaps region {:?}", names[1])));
                }
            }
        }
    }
    Ok(())
}
