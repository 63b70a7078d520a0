//! Drawing new glyphs.

use anyhow::Result;
use candle_core::{Device, Tensor};

use crate::data::{CHARACTERS, Conditions, Dataset, SIDE};
use crate::diffusion::{self, Purpose, noise, stream};
use crate::governed::{Dial, Governed};

/// Weight of classifier-free guidance (Ho & Salimans 2022): 1 is none.
const GUIDANCE: f64 = 1.6;
/// More than there are wishes: each draw of each wish has a stream of its own.
const DRAWS: u64 = 1 << 32;
/// Glyphs drawn at a time.
const CHUNK: usize = 64;

/// A glyph to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub typeface: usize,
    pub character: usize,
}

/// The wishes for a text in a typeface; every letter is a character of the sheet.
pub fn spell(typeface: usize, text: &str) -> impl Iterator<Item = Wish> + '_ {
    let known = text.chars().filter_map(|letter| CHARACTERS.find(letter));
    known.map(move |character| Wish { typeface, character })
}

/// How glyphs are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Drawing {
    /// DDIM steps.
    pub steps: usize,
    /// Which of a wish's noises to start from.
    pub draw: u64,
    /// Where the region's dial stands; the style embedding is faded with it.
    pub dial: Dial,
}

/// Draws the wishes, `[n, SIDE²]` in `-1..1`. A wish is drawn from the same noise whatever the
/// dial and whatever else is drawn.
pub fn draw(
    model: &Governed,
    data: &Dataset,
    wishes: &[Wish],
    drawing: Drawing,
) -> Result<Vec<f32>> {
    let mut images = Vec::with_capacity(wishes.len() * SIDE * SIDE);
    for wishes in wishes.chunks(CHUNK) {
        images.extend(draw_chunk(model, data, wishes, drawing)?);
    }
    Ok(images)
}

fn draw_chunk(
    model: &Governed,
    data: &Dataset,
    wishes: &[Wish],
    drawing: Drawing,
) -> Result<Vec<f32>> {
    let count = wishes.len();
    // Every prediction is made twice: as wished, and without being told anything.
    let (no_character, no_style) = (CHARACTERS.len() as u32, data.typefaces.len() as u32);
    let twice = |told: fn(&Wish) -> usize, none: u32| -> Vec<u32> {
        let told = wishes.iter().map(|wish| told(wish) as u32);
        told.chain(std::iter::repeat_n(none, count)).collect()
    };
    let mut conditions = Conditions {
        characters: twice(|wish| wish.character, no_character),
        styles: twice(|wish| wish.typeface, no_style),
        style_share: None,
    };
    if let Dial::At(share) = drawing.dial {
        conditions.style_share = Some(vec![share; 2 * count]);
    }
    let categories: Vec<u32> = wishes.iter().chain(wishes).map(|w| w.typeface as u32).collect();
    let start: Vec<f32> = (wishes.iter())
        .flat_map(|wish| {
            let index = (wish.typeface * CHARACTERS.len() + wish.character) as u64;
            let index = index + drawing.draw * DRAWS;
            noise(&mut stream(0, Purpose::Sampling, index), 1)
        })
        .collect();
    let start = Tensor::from_vec(start, (count, 1, SIDE, SIDE), &Device::Cpu)?;
    let predict = |x: &Tensor, level: f32| {
        let levels = vec![level; 2 * count];
        let both = Tensor::cat(&[x, x], 0)?;
        let both = model.predict(&both, &levels, &conditions, &categories, drawing.dial)?;
        let (told, free) = (both.narrow(0, 0, count)?, both.narrow(0, count, count)?);
        &free + ((told - &free)? * GUIDANCE)?
    };
    Ok(diffusion::sample(start, drawing.steps, predict)?)
}
