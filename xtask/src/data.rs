//! `cargo xtask data`: the glyph pictures of the example, rendered from Debian's font packages.
//!
//! `data/typefaces.toml` says which; the result is `data/glyphs.png`, one greyscale picture
//! with a row per typeface and a column per character, each cell [`CELL`]² pixels.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ab_glyph::{Font, FontVec, GlyphId, PxScale, Rect, point};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::sheet::{self, Sheet};
use crate::shell;

/// The characters, in column order.
const CHARACTERS: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The groups of typefaces.
const GROUPS: [&str; 7] = ["serif", "sans", "mono", "slab", "script", "blackletter", "display"];
/// Side of a glyph's cell, pixels.
const CELL: usize = 16;
/// No glyph's ink is wider or higher than this, pixels.
const INK: f32 = 15.0;
/// Size at which outlines are measured: large, so that whole-pixel bounds are exact enough.
const MEASURE: f32 = 4096.0;

/// The file's root.
#[derive(Deserialize)]
struct Listing {
    typeface: Vec<Typeface>,
}

/// What `data/typefaces.toml` says of a typeface; its `name` and `licence` are for readers.
#[derive(Deserialize)]
struct Typeface {
    group: String,
    slug: String,
    designer: String,
    package: String,
    version: String,
    file: PathBuf,
}

/// Renders every listed typeface and writes the picture.
pub fn render() -> Result<()> {
    let folder = shell::root().join("data");
    let listing = read_listing(&folder)?;
    let columns = CHARACTERS.len();
    let mut sheet = Sheet::blank(columns * CELL, listing.typeface.len() * CELL);
    for (row, typeface) in listing.typeface.iter().enumerate() {
        let place = || format!("typeface {}", typeface.slug);
        let file = fetch(typeface).with_context(place)?;
        let font = FontVec::try_from_vec(fs::read(&file)?).with_context(place)?;
        draw_row(&font, &mut sheet, row * CELL).with_context(place)?;
    }
    let target = folder.join("glyphs.png");
    fs::write(
        &target,
        sheet::write(&sheet.pixels, sheet.width, sheet.height, png::ColorType::Grayscale)?,
    )?;
    println!("{}: {} typefaces", target.display(), listing.typeface.len());
    Ok(())
}

/// Reads the listing and checks that no designer and no slug comes twice.
fn read_listing(folder: &Path) -> Result<Listing> {
    let text = fs::read_to_string(folder.join("typefaces.toml"))?;
    let listing: Listing = toml::from_str(&text)?;
    let (mut slugs, mut designers) = (HashSet::new(), HashSet::new());
    for typeface in &listing.typeface {
        let Typeface { group, slug, designer, .. } = typeface;
        ensure!(GROUPS.contains(&group.as_str()), "{slug}: unknown group {group:?}");
        ensure!(slugs.insert(slug), "{slug} is listed twice");
        ensure!(designers.insert(designer), "{slug}: {designer} has another typeface already");
    }
    Ok(listing)
}

/// The font file, from the package unpacked below the ignored tools folder.
fn fetch(typeface: &Typeface) -> Result<PathBuf> {
    let Typeface { package, version, .. } = typeface;
    let fonts = shell::tools().join("fonts");
    let unpacked = fonts.join(format!("{package}_{}", version.replace(':', "%3a")));
    if !unpacked.exists() {
        fs::create_dir_all(&fonts)?;
        let wanted = format!("{package}={version}");
        shell::run(Command::new("apt-get").args(["-q", "download", &wanted]).current_dir(&fonts))
            .context("the fonts come from Debian's packages: run `apt-get update` on Debian 12")?;
        let archive = archive(&fonts, &unpacked)?;
        // Unpacked beside its place and then renamed, so that a half-unpacked one is never used.
        let partial = unpacked.with_extension("partial");
        shell::run(Command::new("dpkg").arg("-x").args([&archive, &partial]))?;
        fs::rename(&partial, &unpacked)?;
    }
    Ok(unpacked.join("usr/share/fonts").join(&typeface.file))
}

/// The downloaded archive: the package's name and version, then its architecture.
fn archive(folder: &Path, unpacked: &Path) -> Result<PathBuf> {
    let stem = unpacked.file_name().unwrap_or_default().to_string_lossy().into_owned() + "_";
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&stem) && name.ends_with(".deb") {
            return Ok(folder.join(name));
        }
    }
    bail!("no archive {stem}*.deb was downloaded")
}

/// Draws the row of one typeface at height `top`: all glyphs at one scale, each centred by its ink.
fn draw_row(font: &FontVec, sheet: &mut Sheet, top: usize) -> Result<()> {
    let mut glyphs = Vec::new();
    for character in CHARACTERS.chars() {
        let id = font.glyph_id(character);
        ensure!(id != GlyphId(0), "no glyph for {character:?}");
        let bounds = bounds(font, id).with_context(|| format!("{character:?} is blank"))?;
        glyphs.push((id, bounds));
    }
    let common = typeface_scale(glyphs.iter().map(|glyph| glyph.1));
    for (column, (id, bounds)) in glyphs.into_iter().enumerate() {
        // The few that stick out, such as a swash capital, are shrunk on their own.
        let scale = common.min(INK / bounds.width()).min(INK / bounds.height());
        draw(font, id, bounds, scale, sheet, (column * CELL, top));
    }
    Ok(())
}

/// Bounds of a glyph's ink at size [`MEASURE`].
fn bounds(font: &FontVec, id: GlyphId) -> Option<Rect> {
    let glyph = id.with_scale(PxScale::from(MEASURE));
    Some(font.outline_glyph(glyph)?.px_bounds())
}

/// The scale at which four of five glyphs are no higher, and 19 of 20 no wider, than the ink may be.
fn typeface_scale(bounds: impl Iterator<Item = Rect>) -> f32 {
    let (mut widths, mut heights): (Vec<_>, Vec<_>) =
        bounds.map(|b| (b.width(), b.height())).unzip();
    let quantile = |sizes: &mut Vec<f32>, share: f32| {
        sizes.sort_by(f32::total_cmp);
        sizes[((sizes.len() - 1) as f32 * share) as usize]
    };
    (INK / quantile(&mut widths, 0.95)).min(INK / quantile(&mut heights, 0.8))
}

/// Draws one glyph with the middle of its ink in the middle of its cell.
fn draw(
    font: &FontVec,
    id: GlyphId,
    bounds: Rect,
    scale: f32,
    sheet: &mut Sheet,
    corner: (usize, usize),
) {
    let middle = CELL as f32 / 2.0;
    let position = point(
        middle - scale * (bounds.min.x + bounds.max.x) / 2.0,
        middle - scale * (bounds.min.y + bounds.max.y) / 2.0,
    );
    let glyph = id.with_scale_and_position(PxScale::from(MEASURE * scale), position);
    let Some(outline) = font.outline_glyph(glyph) else { return };
    let min = outline.px_bounds().min;
    // The rasterizer gives the exact share of each pixel that the outline covers.
    outline.draw(|x, y, coverage| {
        let (x, y) = (x as i32 + min.x as i32, y as i32 + min.y as i32);
        let cell = 0..CELL as i32;
        if cell.contains(&x) && cell.contains(&y) {
            let value = (coverage.clamp(0.0, 1.0) * 255.0).round() as u8;
            sheet.pixels[(corner.1 + y as usize) * sheet.width + corner.0 + x as usize] = value;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> (Listing, Sheet) {
        let folder = shell::root().join("data");
        let listing = read_listing(&folder).unwrap();
        let sheet = Sheet::read(&fs::read(folder.join("glyphs.png")).unwrap()).unwrap();
        (listing, sheet)
    }

    /// The pixels of one cell.
    fn cell(sheet: &Sheet, row: usize, column: usize) -> Vec<f64> {
        let (left, top) = (column * CELL, row * CELL);
        (0..CELL * CELL).map(|i| f64::from(sheet.at(left + i % CELL, top + i / CELL))).collect()
    }

    #[test]
    fn picture_matches_listing() {
        let (listing, sheet) = committed();
        assert!(listing.typeface.len() >= 40);
        assert_eq!(sheet.width, CHARACTERS.len() * CELL);
        assert_eq!(sheet.height, listing.typeface.len() * CELL);
        for group in GROUPS {
            let members = listing.typeface.iter().filter(|t| t.group == group).count();
            assert!(members >= 3, "{group}: {members}");
        }
    }

    #[test]
    fn every_glyph_has_ink_in_the_middle() {
        let (listing, sheet) = committed();
        for (row, typeface) in listing.typeface.iter().enumerate() {
            for (column, character) in CHARACTERS.chars().enumerate() {
                let pixels = cell(&sheet, row, column);
                let place = format!("{} {character}", typeface.slug);
                let ink: Vec<usize> = (0..pixels.len()).filter(|&i| pixels[i] > 0.0).collect();
                assert!(pixels.iter().sum::<f64>() > 5.0 * 255.0, "{place}: blank");
                for axis in [|i: usize| i % CELL, |i: usize| i / CELL] {
                    let low = ink.iter().map(|&i| axis(i)).min().unwrap();
                    let high = ink.iter().map(|&i| axis(i)).max().unwrap();
                    let off = (low + high).abs_diff(CELL - 1);
                    assert!(off <= 1, "{place}: ink from {low} to {high}");
                }
            }
        }
    }

    #[test]
    fn no_typeface_is_capitals_only_or_like_another() {
        let (listing, sheet) = committed();
        let row = |row: usize| (0..CHARACTERS.len()).map(move |column| (row, column));
        let glyphs: Vec<Vec<Vec<f64>>> = (0..listing.typeface.len())
            .map(|r| row(r).map(|(r, c)| cell(&sheet, r, c)).collect())
            .collect();
        for (r, one) in glyphs.iter().enumerate() {
            let same = (10..36).filter(|&c| one[c] == one[c + 26]).count();
            assert!(same < 5, "{}: {same} capitals double", listing.typeface[r].slug);
            for (other, two) in glyphs[..r].iter().enumerate() {
                let same = one.iter().zip(two).filter(|(a, b)| a == b).count();
                let (a, b) = (&listing.typeface[r].slug, &listing.typeface[other].slug);
                assert!(same < 5, "{a} and {b}: {same} glyphs are the same");
            }
        }
    }
}
