//! Sheets of small grey pictures, kept as PNG.

use std::io::Cursor;

use anyhow::{Result, ensure};
use png::{BitDepth, ColorType};

/// One byte a pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sheet {
    pub width: usize,
    pub height: usize,
    /// `[height, width]`.
    pub pixels: Vec<u8>,
}

impl Sheet {
    pub fn blank(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height] }
    }

    /// Reads a PNG of 8-bit grey.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
        let (info, size) = (reader.info(), reader.output_buffer_size());
        let format = (info.color_type, info.bit_depth);
        ensure!(format == (ColorType::Grayscale, BitDepth::Eight), "{format:?}, not 8-bit grey");
        let (width, height) = (info.width as usize, info.height as usize);
        let mut pixels = vec![0; size.unwrap_or(width * height)];
        reader.next_frame(&mut pixels)?;
        Ok(Self { width, height, pixels })
    }

    pub fn at(&self, x: usize, y: usize) -> u8 {
        self.pixels[y * self.width + x]
    }
}

/// A PNG of 8 bits a channel, as small as it gets.
pub fn write(pixels: &[u8], width: usize, height: usize, color: ColorType) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(color);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    encoder.set_filter(png::Filter::Adaptive);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}
