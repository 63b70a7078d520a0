//! From a block or region to who made it.

use serde::Serialize;

use super::regions::route;
use super::{Archive, Citation};
use crate::provenance::Estimate;
use crate::{Error, Result};

/// A part of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A block, by its name.
    Block(String),
    /// An owned region, by its name.
    Region(String),
}

/// Who moved a part of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backward {
    /// The block or region.
    pub place: String,
    /// The blocks whose amounts are given. Of a region these are all that hold a layer of it,
    /// with what else is in them, and only categories that train the region are listed.
    pub blocks: Vec<String>,
    /// Categories, by how far they moved it.
    pub categories: Vec<CategoryThere>,
    /// Samples, by how far they moved it.
    pub samples: Vec<SampleThere>,
    /// What this rests on.
    pub citation: Citation,
}

/// A category's amounts in a part of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CategoryThere {
    /// The category.
    pub category: String,
    /// Samples of it that were seen.
    pub samples: usize,
    /// `‖Σ A_n‖`.
    pub moved: Estimate,
    /// `moved` as a part of the sum over the categories.
    pub share: f64,
    /// `Σ ‖A_n‖`.
    pub pushed: f64,
}

/// A sample's amounts in a part of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleThere {
    /// The sample.
    pub sample: u64,
    /// Its category.
    pub category: String,
    /// `‖A_n‖`.
    pub moved: Estimate,
    /// `Σ |η · optimizer_scale · route · gate| ‖G‖`.
    pub applied: f64,
}

/// Whether a category trains a place.
type Trains = Box<dyn Fn(&str) -> bool>;

impl Archive {
    /// Who moved a block or region: categories, cut to their first `level` names, and the
    /// `count` samples that moved it farthest.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no such block or region.
    pub fn backward(&self, place: &Place, level: Option<usize>, count: usize) -> Result<Backward> {
        let (name, blocks, trains) = self.resolve(place)?;
        let len = self.influence().sketch_len();
        let part = |sketch: &[f32]| -> Vec<f32> {
            blocks.iter().flat_map(|&b| sketch[b * len..][..len].iter().copied()).collect()
        };
        let mut samples = Vec::new();
        for &id in self.influence().ids() {
            let info = self.sample(id)?;
            let (Some(sketch), Some(totals)) =
                (self.influence().sketch(id), self.influence().totals(id))
            else {
                continue;
            };
            if trains(&info.category) {
                samples.push(SampleThere {
                    sample: id,
                    category: info.category.clone(),
                    moved: Estimate::norm(self.kind(), &part(sketch), len),
                    applied: blocks.iter().map(|&b| totals[b].exposure).sum(),
                });
            }
        }
        let categories = self.categories_there(&samples, level, &part)?;
        let order = |a: &SampleThere, b: &SampleThere| {
            b.moved.value.total_cmp(&a.moved.value).then(a.sample.cmp(&b.sample))
        };
        samples.sort_unstable_by(order);
        samples.truncate(count);
        let named = samples.iter().map(|it| it.sample).collect();
        let blocks = blocks.iter().map(|&b| self.blocks()[b].clone()).collect();
        Ok(Backward { place: name, blocks, categories, samples, citation: self.cite_all(named) })
    }

    fn categories_there(
        &self,
        samples: &[SampleThere],
        level: Option<usize>,
        part: &dyn Fn(&[f32]) -> Vec<f32>,
    ) -> Result<Vec<CategoryThere>> {
        let (grouping, len) = (self.grouping(level), self.influence().sketch_len());
        let mut sums = vec![(0, 0.0); grouping.names.len()];
        for sample in samples {
            let sum = &mut sums[grouping.of[&sample.sample]];
            *sum = (sum.0 + 1, sum.1 + sample.moved.value);
        }
        let trained: std::collections::HashSet<u64> = samples.iter().map(|it| it.sample).collect();
        let group_of = |id| trained.contains(&id).then(|| grouping.of[&id] as u64);
        let grouped = self.influence().grouped(group_of)?;
        let mut there: Vec<CategoryThere> = (grouping.names.iter().enumerate())
            .filter_map(|(at, name)| {
                let sketch = part(grouped.sketch(at as u64)?);
                Some(CategoryThere {
                    category: name.clone(),
                    samples: sums[at].0,
                    moved: Estimate::norm(self.kind(), &sketch, len),
                    share: 0.0,
                    pushed: sums[at].1,
                })
            })
            .collect();
        let all: f64 = there.iter().map(|it| it.moved.value).sum();
        for it in &mut there {
            it.share = if all > 0.0 { it.moved.value / all } else { 0.0 };
        }
        there.sort_by(|a, b| b.moved.value.total_cmp(&a.moved.value));
        Ok(there)
    }

    /// Name, blocks, and whether a category trains the place.
    fn resolve(&self, place: &Place) -> Result<(String, Vec<usize>, Trains)> {
        let name = match place {
            Place::Block(name) => {
                return Ok((name.clone(), vec![self.block(name)?], Box::new(|_| true)));
            }
            Place::Region(name) => name,
        };
        let Some(policy) = self.policy() else {
            return Err(Error::argument("region", "a ledger that holds a policy", name));
        };
        let Some(region) = policy.regions().iter().find(|region| region.name == *name).cloned()
        else {
            let names: Vec<&str> = policy.regions().iter().map(|it| &*it.name).collect();
            let expected = match names.is_empty() {
                true => "none: the policy has no region".to_owned(),
                false => format!("one of {}", names.join(", ")),
            };
            return Err(Error::argument("region", expected, name));
        };
        let blocks = self.blocks_of(&region).collect();
        let trains = move |category: &str| route(&policy, &region, category) != 0.0;
        Ok((name.clone(), blocks, Box::new(trains)))
    }
}
