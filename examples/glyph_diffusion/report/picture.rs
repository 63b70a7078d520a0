//! Glyphs as inline PNG pictures.

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::data::{SIDE, sheet};

/// Colour a row of glyphs is printed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// Public typefaces.
    Black,
    /// The rights-tracked group.
    Red,
    /// Training glyphs, for comparison.
    Grey,
}

impl Ink {
    fn rgb(self) -> [u8; 3] {
        match self {
            Self::Black => [0x1c, 0x1f, 0x2b],
            Self::Red => [0xb7, 0x2b, 0x1d],
            Self::Grey => [0x9a, 0x9d, 0xa8],
        }
    }
}

/// An `<img>` of glyphs side by side, `images` being `[n, SIDE²]` in `-1..1` (1 is ink), shown
/// at `scale` times their size.
pub fn strip(images: &[f32], ink: Ink, scale: usize, title: &str) -> Result<String> {
    const GAP: usize = 2;
    let count = images.len() / (SIDE * SIDE);
    let (width, height) = (count * (SIDE + GAP) - GAP.min(count * GAP), SIDE);
    let [r, g, b] = ink.rgb();
    let mut pixels = [r, g, b, 0].repeat(width * height);
    for (n, image) in images.chunks_exact(SIDE * SIDE).enumerate() {
        for (at, value) in image.iter().enumerate() {
            let x = n * (SIDE + GAP) + at % SIDE;
            let alpha = ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8;
            pixels[4 * (at / SIDE * width + x) + 3] = alpha;
        }
    }
    let png = sheet::write(&pixels, width, height, png::ColorType::Rgba)?;
    let (shown, title) = (width * scale, gradroute::report::html::escape(title));
    let data = STANDARD.encode(png);
    Ok(format!(
        "<img class=g width={shown} height={} alt=\"{title}\" title=\"{title}\" \
         src=\"data:image/png;base64,{data}\">",
        height * scale
    ))
}
