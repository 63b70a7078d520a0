//! What is fixed for a whole run.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use crate::error::expect_len;
use crate::projection::{Sketch, SketchKind};
use crate::provenance::Accumulator;
use crate::routing::{Categories, CompiledPolicy, ModelLayout, Policy};
use crate::{Error, Result};

/// Samples, blocks, policy and projection of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Every sample that may appear in a record; ids are unique.
    #[serde(skip)]
    pub samples: Vec<SampleInfo>,
    /// Blocks, ordered from input to output.
    pub blocks: Vec<BlockInfo>,
    /// The policy's TOML text.
    #[serde(skip)]
    pub policy: String,
    /// The policy's content hash.
    pub policy_hash: String,
    /// The model as the policy sees it; none where the trainer does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<ModelLayout>,
    /// Names of the categories that the policy was compiled for, by id; none where the trainer
    /// does not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// A fingerprint of every sample, `[samples, F]`, by which near-duplicates are known (see
    /// [`Guard`](crate::guard::Guard)); none is as good. It may give away much of the sample to
    /// whoever reads the ledger.
    #[serde(skip)]
    pub fingerprints: Vec<f32>,
    /// The projection.
    pub sketch: SketchKind,
    /// The projection's seed.
    pub seed: u32,
    /// Edges of the noise-level bins, see [`Accumulator::with_noise_edges`].
    pub noise_edges: Vec<f32>,
    /// When the run began, in seconds since 1970.
    pub created: u64,
    /// Whatever else should stay with the run.
    pub metadata: BTreeMap<String, String>,
}

/// One training example.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleInfo {
    /// Stable id.
    pub id: u64,
    /// Category path, such as `style/script/kristi`.
    pub category: String,
    /// Hash of the example's content, by which it is recognised outside the run.
    pub content_hash: [u8; 32],
}

/// A block and its layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockInfo {
    /// The policy's name for it.
    pub name: String,
    /// The layers in it.
    pub layers: Vec<LayerInfo>,
}

/// A layer of a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Its path in the model.
    pub path: String,
    /// Its number of parameters.
    pub parameters: u64,
}

impl RunInfo {
    /// A run that begins now, everything but the projection still empty.
    pub fn new(sketch: SketchKind, seed: u32) -> Self {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        Self {
            samples: Vec::new(),
            blocks: Vec::new(),
            policy: String::new(),
            policy_hash: String::new(),
            layout: None,
            categories: Vec::new(),
            fingerprints: Vec::new(),
            sketch,
            seed,
            noise_edges: Vec::new(),
            created: now,
            metadata: BTreeMap::new(),
        }
    }

    /// Takes over what a compiled policy says: its text and hash, the blocks and their layers,
    /// the layout and the categories.
    pub fn governed(mut self, policy: &CompiledPolicy) -> Self {
        let categories = policy.categories();
        self.categories = categories.ids().map(|id| categories.name(id)).collect();
        self.layout = Some(policy.layout().clone());
        self.policy = policy.policy().to_toml();
        self.policy_hash = policy.hash().to_string();
        let names = policy.blocks().iter().map(|block| block.name.clone());
        self.blocks = names.map(|name| BlockInfo { name, layers: Vec::new() }).collect();
        for (index, layer) in policy.layout().layers().iter().enumerate() {
            if let Some(block) = policy.block_of(index) {
                let (path, parameters) = (layer.path.clone(), layer.parameters() as u64);
                self.blocks[block].layers.push(LayerInfo { path, parameters });
            }
        }
        self
    }

    /// The policy as it was in force: its text, compiled for the run's layout and categories.
    /// Where the run does not name these, they are those of its samples.
    ///
    /// # Errors
    /// [`Error::Refused`] where the run recorded no layout; [`Error::Argument`] for a policy that
    /// does not have the run's hash; [`Error::Policy`].
    pub fn compile(&self) -> Result<CompiledPolicy> {
        let Some(layout) = &self.layout else {
            return Err(Error::Refused {
                what: "compiling the run's policy".into(),
                reason: "the run recorded no layout; RunInfo::governed does".into(),
            });
        };
        let policy = Policy::from_toml(&self.policy)?;
        let hash = policy.hash().to_string();
        if hash != self.policy_hash {
            let expected = format!("the policy's hash, {hash}");
            return Err(Error::argument("policy_hash", expected, &self.policy_hash));
        }
        policy.compile(layout, &Categories::named(self.category_names())?)
    }

    /// Names of the categories by id.
    pub fn category_names(&self) -> Vec<&str> {
        if !self.categories.is_empty() {
            return self.categories.iter().map(String::as_str).collect();
        }
        let names: BTreeSet<&str> = self.samples.iter().map(|it| it.category.as_str()).collect();
        names.into_iter().collect()
    }

    /// Numbers per fingerprint, `F`; 0 where there are none.
    ///
    /// # Errors
    /// [`Error::Argument`] when they are not the same number for every sample.
    pub fn fingerprint_len(&self) -> Result<usize> {
        let (samples, all) = (self.samples.len().max(1), self.fingerprints.len());
        expect_len("fingerprints", all / samples * samples, all)?;
        Ok(all / samples)
    }

    /// Numbers per sketch, `K`.
    ///
    /// # Errors
    /// [`Error::Argument`], see [`Sketch::new`].
    pub fn sketch_len(&self) -> Result<usize> {
        Ok(Sketch::new(self.sketch, self.seed, 0)?.len())
    }

    /// An empty accumulator for the run's records.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no block, or the projection or bins are not valid.
    pub fn accumulator(&self) -> Result<Accumulator> {
        Accumulator::new(self.blocks.len(), self.sketch_len()?)?.with_noise_edges(&self.noise_edges)
    }

    /// The ids of the samples.
    ///
    /// # Errors
    /// [`Error::Argument`] when an id appears twice.
    pub(super) fn ids(&self) -> Result<HashSet<u64>> {
        let mut ids = HashSet::with_capacity(self.samples.len());
        for (n, sample) in self.samples.iter().enumerate() {
            if !ids.insert(sample.id) {
                let place = format!("samples[{n}].id");
                return Err(Error::argument(place, "an id of its own", sample.id));
            }
        }
        Ok(ids)
    }
}
