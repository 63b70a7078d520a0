//! The typefaces: pictures, categories, and the order in which training sees them.
//!
//! A sample is one glyph. Its category is `style/<group>/<typeface>`; its id is
//! `typeface · 62 + character`, and a planted copy's is that plus a thousand of its own.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use clap::ValueEnum;
use gradroute::routing::Categories;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::diffusion::{Purpose, stream};
use sheet::Sheet;

#[allow(dead_code)] // xtask draws them
#[path = "sheet.rs"]
pub mod sheet;

/// Pixels along a glyph's side.
pub const SIDE: usize = 16;
/// The characters, in the order of the sheet's columns.
pub const CHARACTERS: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The groups, as data/typefaces.toml has them.
pub const GROUPS: [&str; 7] = ["serif", "sans", "mono", "slab", "script", "blackletter", "display"];
/// The group whose rights are tracked unless another is chosen.
pub const OWNED: &str = "script";
/// Glyphs that appear several times among the samples, as `(group, character)` of the group's
/// first typeface, and how many copies are added: [`Plant::Few`].
const PLANTED: [(&str, char); 6] =
    [("serif", 'R'), ("sans", 'g'), ("display", '8'), ("mono", 'Q'), ("slab", 'a'), (OWNED, 'k')];
const COPIES: u64 = 7;
/// How often the glyphs of [`Plant::Study`] appear in all, again and again.
const TIMES: [u64; 10] = [2, 3, 4, 5, 6, 8, 10, 12, 16, 20];
/// Glyphs of [`Plant::Study`]; of the second half every second copy is shifted.
const STUDIED: usize = 20;
/// Of so many typefaces [`Plant::Study`] keeps the first, so that a short run goes through its
/// data often.
const KEPT: usize = 3;
/// Where shifted copies go, in turn: right and down, in pixels.
const SHIFTS: [(isize, isize); 4] = [(1, 0), (0, 1), (-1, 0), (0, -1)];
/// Copies' ids start here, so that they are told from first instances at a glance.
const COPY_IDS: u64 = 100_000;

/// Which glyphs are given to the training several times, under ids of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plant {
    /// None.
    None,
    /// Six, eight times each.
    Few,
    /// Twenty, from twice to twenty times, half of them partly shifted by a pixel.
    Study,
}

/// A typeface and who made it.
#[derive(Clone, Debug, Deserialize)]
pub struct Typeface {
    pub group: String,
    pub slug: String,
    pub name: String,
    pub designer: String,
    pub licence: String,
}

impl Typeface {
    /// `style/<group>/<slug>`.
    pub fn category(&self) -> String {
        format!("style/{}/{}", self.group, self.slug)
    }
}

/// One training example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Stable over epochs, runs and versions of the sheet that only add typefaces.
    pub id: u64,
    pub typeface: usize,
    pub character: usize,
    /// Right and down, in pixels; other than 0 for shifted copies only.
    pub shift: (isize, isize),
}

impl Sample {
    /// A glyph of the sheet, as it stands there.
    pub fn glyph(typeface: usize, character: usize) -> Self {
        let id = (typeface * CHARACTERS.len() + character) as u64;
        Self { id, typeface, character, shift: (0, 0) }
    }

    /// Whether the sample is a planted copy.
    pub fn is_copy(&self) -> bool {
        self.id >= COPY_IDS
    }
}

/// All typefaces and their glyphs.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub typefaces: Vec<Typeface>,
    /// Every glyph once, typeface by typeface, then the planted copies.
    pub samples: Vec<Sample>,
    /// `[typefaces, characters, SIDE²]` in `-1..1`, 1 being ink.
    pixels: Vec<f32>,
    /// The group whose rights are tracked.
    owned: String,
}

impl Dataset {
    /// The sheet the program was built with, and the copies that are asked for.
    pub fn load(plant: Plant) -> Result<Self> {
        const SHEET: &[u8] =
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/data/glyphs.png"));
        const LIST: &str =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/data/typefaces.toml"));
        #[derive(Deserialize)]
        struct List {
            typeface: Vec<Typeface>,
        }
        let typefaces = toml::from_str::<List>(LIST).context("data/typefaces.toml")?.typeface;
        let sheet = Sheet::read(SHEET).context("data/glyphs.png")?;
        let columns = CHARACTERS.len();
        let size = (columns * SIDE, typefaces.len() * SIDE);
        let given = (sheet.width, sheet.height);
        ensure!(given == size, "data/glyphs.png: {given:?} pixels where {size:?} belong");
        let mut pixels = Vec::with_capacity(size.0 * size.1);
        let mut samples = Vec::new();
        for typeface in 0..typefaces.len() {
            for character in 0..columns {
                let at = |k: usize| (character * SIDE + k % SIDE, typeface * SIDE + k / SIDE);
                pixels.extend((0..SIDE * SIDE).map(|k| {
                    let (x, y) = at(k);
                    f32::from(sheet.at(x, y)) / 127.5 - 1.0
                }));
                samples.push(Sample::glyph(typeface, character));
            }
        }
        match plant {
            Plant::None => {}
            Plant::Few => samples.extend(few(&typefaces)?),
            Plant::Study => {
                samples.retain(|sample| sample.typeface % KEPT == 0);
                samples.extend(study(typefaces.len().div_ceil(KEPT)));
            }
        }
        Ok(Self { typefaces, samples, pixels, owned: OWNED.into() })
    }

    /// With another group's rights tracked.
    pub fn tracking(self, group: &str) -> Result<Self> {
        ensure!(self.groups().contains(&group), "data/typefaces.toml: no group {group:?}");
        Ok(Self { owned: group.into(), ..self })
    }

    /// The group whose rights are tracked.
    pub fn owned_group(&self) -> &str {
        &self.owned
    }

    /// Whether a typeface belongs to it.
    pub fn owned_face(&self, typeface: usize) -> bool {
        self.typefaces[typeface].group == self.owned
    }

    /// The categories, one per typeface, ids in the order of the typefaces.
    pub fn categories(&self) -> gradroute::Result<Categories> {
        Categories::new(self.typefaces.iter().map(Typeface::category))
    }

    /// The groups, in the order of the sheet.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = self.typefaces.iter().map(|face| face.group.as_str()).collect();
        groups.dedup();
        groups
    }

    /// The sample with this id.
    pub fn sample(&self, id: u64) -> Option<&Sample> {
        self.samples.iter().find(|sample| sample.id == id)
    }

    /// Pixels of a sample, `[SIDE²]`; what a shift moves in is paper.
    pub fn image(&self, sample: &Sample) -> Vec<f32> {
        let at = (sample.typeface * CHARACTERS.len() + sample.character) * SIDE * SIDE;
        let glyph = &self.pixels[at..][..SIDE * SIDE];
        let inside = |at: usize, by: isize| at.checked_add_signed(-by).filter(|&from| from < SIDE);
        let pixel = |k: usize| {
            let from = (inside(k % SIDE, sample.shift.0), inside(k / SIDE, sample.shift.1));
            let (Some(x), Some(y)) = from else { return -1.0 };
            glyph[y * SIDE + x]
        };
        (0..SIDE * SIDE).map(pixel).collect()
    }

    /// Pixels of several samples, one after the other.
    pub fn images(&self, samples: &[Sample]) -> Vec<f32> {
        samples.iter().flat_map(|sample| self.image(sample)).collect()
    }

    /// How often a sample's glyph is in the data, shifted copies included.
    pub fn times(&self, sample: &Sample) -> usize {
        let same = |it: &&Sample| it.id % COPY_IDS == sample.id % COPY_IDS;
        self.samples.iter().filter(same).count()
    }

    /// Whether the sample belongs to the rights-tracked group.
    pub fn owned(&self, sample: &Sample) -> bool {
        self.owned_face(sample.typeface)
    }
}

/// A copy of a glyph, with an id of its own.
fn copy(of: Sample, copy: u64, shift: (isize, isize)) -> Sample {
    Sample { id: COPY_IDS * copy + of.id, shift, ..of }
}

/// Spread evenly over the kept typefaces and the characters.
fn study(kept: usize) -> Vec<Sample> {
    (0..STUDIED)
        .flat_map(|k| {
            let typeface = KEPT * ((2 * k + k / TIMES.len()) % kept);
            let first = Sample::glyph(typeface, (k * 37 + 11) % CHARACTERS.len());
            (1..TIMES[k % TIMES.len()]).map(move |n| {
                // The second half is planted as often as the first, and shifted.
                let shifted = k >= TIMES.len() && n % 2 == 1;
                let shift = SHIFTS[(k + n as usize / 2) % SHIFTS.len()];
                copy(first, n, if shifted { shift } else { (0, 0) })
            })
        })
        .collect()
}

fn few(typefaces: &[Typeface]) -> Result<Vec<Sample>> {
    let mut copies = Vec::new();
    for (group, character) in PLANTED {
        let typeface = (typefaces.iter().position(|face| face.group == group))
            .with_context(|| format!("data/typefaces.toml: no typeface of group {group}"))?;
        let character = CHARACTERS.find(character).context("a character of the sheet")?;
        let first = Sample::glyph(typeface, character);
        copies.extend((1..=COPIES).map(|n| copy(first, n, (0, 0))));
    }
    Ok(copies)
}

/// What the model is told about the images of a batch.
pub struct Conditions {
    /// Character per image; [`CHARACTERS`]`.len()` for none.
    pub characters: Vec<u32>,
    /// Typeface per image; the number of typefaces for none.
    pub styles: Vec<u32>,
    /// Share of each image's style embedding, the rest being that of no style; none means 1.
    pub style_share: Option<Vec<f32>>,
}

impl Conditions {
    /// The samples' own.
    pub fn of(samples: &[Sample]) -> Self {
        Self {
            characters: samples.iter().map(|sample| sample.character as u32).collect(),
            styles: samples.iter().map(|sample| sample.typeface as u32).collect(),
            style_share: None,
        }
    }

    /// As index tensors.
    pub fn tensors(&self, device: &Device) -> candle_core::Result<(Tensor, Tensor)> {
        Ok((
            Tensor::new(self.characters.as_slice(), device)?,
            Tensor::new(self.styles.as_slice(), device)?,
        ))
    }
}

/// Draws batches: every epoch visits each sample once, in an order of its own.
pub struct Order {
    samples: Vec<Sample>,
    seed: u64,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Order {
    pub fn new(samples: Vec<Sample>, seed: u64) -> Self {
        Self { samples, seed, epoch: None }
    }

    /// The batch of a step, the same whenever it is asked for.
    pub fn batch(&mut self, step: u64, size: usize) -> Vec<Sample> {
        let first = step * size as u64;
        (first..first + size as u64).map(|at| self.visit(at)).collect()
    }

    fn visit(&mut self, at: u64) -> Sample {
        let count = self.samples.len() as u64;
        let epoch = at / count;
        if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let mut rng = stream(self.seed, Purpose::Order, epoch);
            let mut order: Vec<usize> = (0..self.samples.len()).collect();
            for k in (1..order.len()).rev() {
                order.swap(k, rng.random_range(0..=k));
            }
            self.epoch = Some((epoch, order));
        }
        let (_, order) = self.epoch.as_ref().expect("just drawn");
        self.samples[order[(at % count) as usize]]
    }
}
