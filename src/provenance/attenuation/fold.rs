//! The dial, folded into the weights that read a region.

use std::ops::Range;

use super::checkpoint::{self, Checkpoint};
use crate::routing::{CategoryPath, CompiledPolicy, LayerKind, LayerSpec};
use crate::{Error, Result};

/// Entry of the checkpoint's metadata that says what was done to it, a line per attenuation.
const NOTE: &str = "gradroute.attenuation";

/// Where the dial of a category's regions goes: 1 leaves them as trained, 0 takes them away.
#[derive(Clone, Debug, PartialEq)]
pub struct Dial {
    category: CategoryPath,
    block: Option<String>,
    at: f32,
}

impl Dial {
    /// For every block.
    ///
    /// # Errors
    /// [`Error::Argument`] when `category` is no path, or `at` is outside of `0..=1`.
    pub fn new(category: &str, at: f32) -> Result<Self> {
        if !(0.0..=1.0).contains(&at) {
            return Err(Error::argument("at", "a number from 0 to 1", at));
        }
        Ok(Self { category: category.parse()?, block: None, at })
    }

    /// For one block only, by the policy's name for it.
    pub fn in_block(self, block: impl Into<String>) -> Self {
        Self { block: Some(block.into()), ..self }
    }
}

/// What becomes of the rows of an embedding that belong to a dialled region. The switch does
/// not reach them, since it acts on features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowFade {
    /// Path of the embedding.
    pub layer: String,
    /// The row they fade towards: `dial · own + (1 − dial) · neutral`, such as the row that
    /// stands for no style.
    pub neutral: usize,
}

/// One rectangle of a weight and the factor it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// Layer of the policy's layout.
    pub layer: usize,
    /// Region of the policy.
    pub region: usize,
    /// Output features; for an embedding all of them.
    pub outputs: Range<usize>,
    /// Input features as [`LayerSpec::features`] counts them: columns of a linear layer, input
    /// channels of a convolution with all their taps, rows of an embedding.
    pub inputs: Range<usize>,
    /// The dial there.
    pub dial: f32,
    /// Row faded towards, for an embedding.
    pub neutral: Option<usize>,
}

/// What a checkpoint says was folded into it already, a line for each time. Dials that are folded in
/// once more multiply.
///
/// # Errors
/// [`Error::Argument`] when these are no safetensors.
pub fn folded(checkpoint: &[u8]) -> Result<Vec<String>> {
    let (_, header) = checkpoint::header(checkpoint)?;
    let note = header.metadata().as_ref().and_then(|notes| notes.get(NOTE));
    Ok(note.into_iter().flat_map(|note| note.lines().map(str::to_owned)).collect())
}

/// Dials set on a policy's regions, ready to be folded into checkpoints.
///
/// Exact where the model calls its switch right before the linear layers and convolutions that
/// read a region, and nowhere else: `W (s · x) = (W · s) x`, up to rounding. A normalisation
/// that reads a region is left as it is, since a factor before it cannot be folded.
#[derive(Clone, Debug)]
pub struct Attenuation<'a> {
    policy: &'a CompiledPolicy,
    /// `[regions, blocks]`.
    dials: Vec<f32>,
    edits: Vec<Edit>,
    note: String,
}

impl<'a> Attenuation<'a> {
    /// Sets the dials; where several apply to a region and block, the last does.
    ///
    /// # Errors
    /// [`Error::Argument`] for a block the policy does not have; [`Error::Refused`] for a
    /// category that owns no region, or shares its region with others.
    pub fn new(policy: &'a CompiledPolicy, dials: &[Dial]) -> Result<Self> {
        let mut it = Self {
            policy,
            dials: vec![1.0; policy.regions().len() * policy.blocks().len()],
            edits: Vec::new(),
            note: note(policy, dials),
        };
        dials.iter().try_for_each(|dial| it.set(dial))?;
        for (layer, spec) in policy.layout().layers().iter().enumerate() {
            for (range, region) in policy.reads_of(layer) {
                let (region, dial) = (*region, it.dial(*region, layer));
                let read = reading(spec, range).filter(|_| dial != 1.0);
                it.edits.extend(read.map(|[outputs, inputs]| Edit {
                    layer,
                    region,
                    outputs,
                    inputs,
                    dial,
                    neutral: None,
                }));
            }
        }
        Ok(it)
    }

    /// Fades the rows that dialled regions own in an embedding, too.
    ///
    /// # Errors
    /// [`Error::Argument`] when the layer is no embedding, has no such row, or the row belongs to
    /// a region itself; when the layer's rows are faded already.
    pub fn fade_rows(mut self, fade: &RowFade) -> Result<Self> {
        let layers = self.policy.layout().layers();
        let known = (self.policy.layout().index(&fade.layer))
            .filter(|&layer| layers[layer].kind == LayerKind::Embedding);
        let Some(layer) = known else {
            return Err(Error::argument("fade.layer", "the path of an embedding", &fade.layer));
        };
        if self.edits.iter().any(|edit| edit.layer == layer && edit.neutral.is_some()) {
            return Err(Error::argument("fade.layer", "each embedding once", &fade.layer));
        }
        let (map, regions) = (
            self.policy.layers()[layer].regions(),
            self.policy.regions_of(layer).collect::<Vec<_>>(),
        );
        if fade.neutral >= map.inputs() || map.region_at(0, fade.neutral) != 0 {
            let expected = format!("a row of {} that no region owns", fade.layer);
            return Err(Error::argument("fade.neutral", expected, fade.neutral));
        }
        for (&region, rectangles) in regions.iter().zip(map.owned()) {
            let dial = self.dial(region, layer);
            if dial == 1.0 {
                continue;
            }
            self.edits.extend(rectangles.iter().map(|rectangle| Edit {
                layer,
                region,
                outputs: rectangle.outputs.clone(),
                inputs: rectangle.inputs.clone(),
                dial,
                neutral: Some(fade.neutral),
            }));
        }
        self.note += &format!("; rows of {} towards {}", fade.layer, fade.neutral);
        Ok(self)
    }

    /// Where the dial of a region stands in a layer's block.
    ///
    /// # Panics
    /// When there is no such region or layer.
    pub fn dial(&self, region: usize, layer: usize) -> f32 {
        let block = self.policy.block_of(layer).expect("every layer is in a block");
        self.dials[region * self.policy.blocks().len() + block]
    }

    /// What would be changed.
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// The policy whose regions are dialled.
    pub fn policy(&self) -> &CompiledPolicy {
        self.policy
    }

    /// Folds the dials into a checkpoint whose tensors are named `<layer>.weight`. All other
    /// tensors keep their bytes, types and shapes stay, and the metadata says what was done.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the tensor that is missing or of another shape or type.
    pub fn apply(&self, checkpoint: &[u8]) -> Result<Vec<u8>> {
        let mut checkpoint = Checkpoint::read(checkpoint)?;
        self.check(&checkpoint)?;
        for edit in &self.edits {
            let name = self.tensor(edit);
            let values = checkpoint.values(&name)?;
            checkpoint.set(&name, self.changed(edit, &values))?;
        }
        checkpoint.finish(NOTE, &self.note)
    }

    pub(super) fn tensor(&self, edit: &Edit) -> String {
        format!("{}.weight", self.policy.layout().layers()[edit.layer].path)
    }

    /// Checks the tensors that would be changed.
    pub(super) fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        for edit in &self.edits {
            let (spec, name) = (&self.policy.layout().layers()[edit.layer], self.tensor(edit));
            match spec.kind {
                LayerKind::Conv2d { .. } => {
                    let shape = checkpoint.shape(&name)?.to_vec();
                    let taps: usize = shape.iter().skip(2).product();
                    let fits = shape.len() == 4 && taps == spec.taps;
                    let expected = [spec.outputs, spec.features];
                    if !fits || shape[..2] != expected {
                        let expected = format!("{expected:?} × {} taps", spec.taps);
                        return Err(Error::argument(name, expected, format!("{shape:?}")));
                    }
                    checkpoint.expect(&name, &shape)?;
                }
                LayerKind::Embedding => checkpoint.expect(&name, &[spec.features, spec.outputs])?,
                _ => checkpoint.expect(&name, &[spec.outputs, spec.features])?,
            }
        }
        Ok(())
    }

    /// Places an edit changes, with what they become; `values` is the whole tensor.
    pub(super) fn changed<'v>(
        &self,
        edit: &'v Edit,
        values: &'v [f64],
    ) -> Box<dyn Iterator<Item = (usize, f64)> + 'v> {
        let (spec, dial) = (&self.policy.layout().layers()[edit.layer], f64::from(edit.dial));
        let (features, taps, width) = (spec.features, spec.taps, spec.outputs);
        if let Some(neutral) = edit.neutral {
            return Box::new(edit.inputs.clone().flat_map(move |row| {
                edit.outputs.clone().map(move |o| {
                    let (at, to) = (row * width + o, neutral * width + o);
                    // 0 selects here, too.
                    let own = if dial == 0.0 { 0.0 } else { dial * values[at] };
                    (at, own + (1.0 - dial) * values[to])
                })
            }));
        }
        Box::new(edit.outputs.clone().flat_map(move |o| {
            let row = o * features * taps;
            let taps = edit.inputs.start * taps..edit.inputs.end * taps;
            // 0 selects, so that nothing of a weight that is not finite is left.
            let scaled = move |value: f64| if dial == 0.0 { 0.0 } else { dial * value };
            taps.map(move |tap| (row + tap, scaled(values[row + tap])))
        }))
    }

    fn set(&mut self, dial: &Dial) -> Result<()> {
        let (policy, count) = (self.policy, self.policy.blocks().len());
        let blocks = match &dial.block {
            None => 0..count,
            Some(name) => match policy.blocks().iter().position(|block| block.name == *name) {
                Some(block) => block..block + 1,
                None => return Err(Error::argument("dial.block", "a block of the policy", name)),
            },
        };
        let refused = |reason: String| Error::Refused {
            what: format!("attenuating {}", dial.category),
            reason,
        };
        let regions = policy.regions().iter().enumerate();
        let mut own: Vec<usize> = Vec::new();
        for (region, owned) in regions {
            if owned.owner.within(&dial.category) {
                own.push(region);
            } else if dial.category.within(&owned.owner) {
                let (name, owner) = (&owned.name, &owned.owner);
                let reason = format!(
                    "region {name:?} belongs to all of {owner}, and its dial would take from the \
                     others, too; dial {owner}"
                );
                return Err(refused(reason));
            }
        }
        if own.is_empty() {
            let reason = "it owns no region, so nothing in the weights is its alone; a Projection \
                          is the approximation for linear layers";
            return Err(refused(reason.into()));
        }
        for region in own {
            self.dials[region * count..][blocks.clone()].fill(dial.at);
        }
        Ok(())
    }
}

/// The rectangle of a layer's weight that reads features `range` of its input: `[outputs,
/// inputs]`; none for layers whose weight cannot take a factor of their input.
fn reading(spec: &LayerSpec, range: &Range<usize>) -> Option<[Range<usize>; 2]> {
    match spec.kind {
        LayerKind::Linear | LayerKind::Conv2d { groups: 0 | 1 } => {
            Some([0..spec.outputs, range.clone()])
        }
        // Regions end where groups do: anything else a policy cannot be compiled with.
        LayerKind::Conv2d { groups } => {
            let (from, to) = (spec.features, spec.outputs / groups);
            Some([range.start / from * to..range.end / from * to, 0..from])
        }
        LayerKind::Norm(_) | LayerKind::Embedding => None,
    }
}

/// The line of the checkpoint's metadata.
fn note(policy: &CompiledPolicy, dials: &[Dial]) -> String {
    let dials = dials.iter().map(|dial| match &dial.block {
        None => format!("{} {}", dial.category, dial.at),
        Some(block) => format!("{} in {block:?} {}", dial.category, dial.at),
    });
    format!("policy {}: {}", policy.hash(), dials.collect::<Vec<_>>().join(", "))
}
