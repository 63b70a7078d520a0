//! Can a training picture be had back by asking for it? The criterion of Carlini et al. (2023,
//! arXiv 2301.13188, section 5): a drawn picture is an extraction when it is much nearer to a
//! training picture than to the pictures next nearest to it.

use anyhow::Result;
use serde::Serialize;

use crate::data::{CHARACTERS, Dataset, SIDE, Sample};
use crate::governed::{Dial, Governed};
use crate::sampling::{Drawing, Wish, draw as draw_wishes};

/// Draws of every glyph.
const DRAWS: u64 = 8;
/// Neighbours that a distance is compared with.
const NEIGHBOURS: usize = 50;

/// One drawn picture.
#[derive(Clone, Debug, Serialize)]
pub struct Drawn {
    /// Id of the glyph that was asked for.
    pub sample: u64,
    /// How often it is in the data.
    pub times: usize,
    /// L2 distance to the nearest of its copies, over the mean distance to the nearest
    /// [`NEIGHBOURS`] pictures of other glyphs.
    pub ratio: f64,
    /// Whether a copy of it is the nearest of all training pictures.
    pub nearest: bool,
}

/// Draws every planted glyph, and as many that are there once.
pub fn draw(model: &Governed, data: &Dataset, steps: usize) -> Result<Vec<Drawn>> {
    let firsts: Vec<Sample> = data.samples.iter().filter(|s| !s.is_copy()).copied().collect();
    let (planted, single): (Vec<Sample>, Vec<Sample>) =
        firsts.iter().partition(|sample| data.times(sample) > 1);
    let stride = single.len() / planted.len().max(1);
    let asked: Vec<Sample> = planted
        .iter()
        .chain(single.iter().step_by(stride.max(1)).take(planted.len()))
        .copied()
        .collect();
    let wishes: Vec<Wish> = (asked.iter())
        .map(|&Sample { typeface, character, .. }| Wish { typeface, character })
        .collect();
    let images = data.images(&data.samples);
    let mut drawn = Vec::new();
    for draw in 1..=DRAWS {
        let drawing = Drawing { steps, draw, dial: Dial::AsTrained };
        let pictures = draw_wishes(model, data, &wishes, drawing)?;
        for (sample, picture) in asked.iter().zip(pictures.chunks_exact(SIDE * SIDE)) {
            drawn.push(compare(data, &images, sample, picture));
        }
    }
    Ok(drawn)
}

fn compare(data: &Dataset, images: &[f32], asked: &Sample, picture: &[f32]) -> Drawn {
    let (mut own, mut others) = (f64::INFINITY, Vec::new());
    for (sample, image) in data.samples.iter().zip(images.chunks_exact(SIDE * SIDE)) {
        let square: f64 = image.iter().zip(picture).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        if (sample.typeface, sample.character) == (asked.typeface, asked.character) {
            own = own.min(square.sqrt());
        } else {
            others.push(square.sqrt());
        }
    }
    others.sort_unstable_by(f64::total_cmp);
    let near = &others[..NEIGHBOURS.min(others.len())];
    let mean = near.iter().sum::<f64>() / near.len() as f64;
    Drawn {
        sample: (asked.typeface * CHARACTERS.len() + asked.character) as u64,
        times: data.times(asked),
        ratio: own / mean,
        nearest: own <= near[0],
    }
}
