//! Glyphs the model drew: every typeface, and the tracked group at several dials.

use anyhow::Result;

use super::Report;
use super::picture::{Ink, strip};
use crate::data::{CHARACTERS, SIDE, Sample};
use crate::governed::Dial;
use crate::options::PolicyChoice;
use crate::sampling::{Drawing, Wish, draw, spell};
use gradroute::report::html::{escape, section};

/// What each typeface is asked to write.
const TEXT: &str = "Hamburg7";
/// Dials shown.
const DIALS: [f32; 3] = [1.0, 0.5, 0.0];

/// The glyphs of the overview, `TEXT` in every typeface.
pub struct Faces {
    pub wishes: Vec<Wish>,
    /// `[wishes, SIDE²]`.
    pub images: Vec<f32>,
}

impl Faces {
    pub fn draw(report: &Report) -> Result<Self> {
        let wishes: Vec<Wish> =
            (0..report.data.typefaces.len()).flat_map(|face| spell(face, TEXT)).collect();
        let drawing = Drawing { draw: 0, steps: report.drawing_steps, dial: Dial::AsTrained };
        let images = draw(report.model, report.data, &wishes, drawing)?;
        Ok(Self { wishes, images })
    }

    /// The image of a wish.
    pub fn image(&self, index: usize) -> &[f32] {
        &self.images[index * SIDE * SIDE..][..SIDE * SIDE]
    }

    fn of(&self, typeface: usize) -> &[f32] {
        let each = TEXT.len() * SIDE * SIDE;
        &self.images[typeface * each..][..each]
    }

    /// A line of the header: the group's first typefaces side by side.
    pub fn hero(&self, report: &Report, group: &str) -> Result<String> {
        let faces = &report.data.typefaces;
        let images: Vec<f32> = (0..faces.len())
            .filter(|&face| faces[face].group == group && report.trained(face))
            .take(3)
            .flat_map(|face| self.of(face))
            .copied()
            .collect();
        // A group that was left out of the training has no line.
        if images.is_empty() {
            return Ok(String::new());
        }
        strip(&images, ink(report, group), 2, group)
    }

    /// The overview of the typefaces trained on: what the model drew above what it was shown.
    pub fn section(&self, report: &Report) -> Result<String> {
        let mut body = String::from("<div class=faces>");
        let all = report.data.typefaces.iter().enumerate();
        for (face, typeface) in all.filter(|&(face, _)| report.trained(face)) {
            let ink = ink(report, &typeface.group);
            let real: Vec<Sample> =
                spell(face, TEXT).map(|wish| Sample::glyph(face, wish.character)).collect();
            let class = if report.data.owned_face(face) { " class=own" } else { "" };
            body += &format!(
                "<div class=face title=\"{}\"><b{class}>{}</b> <small>{}</small>{}{}</div>",
                escape(&format!("{}, {}", typeface.group, typeface.licence)),
                escape(&typeface.name),
                escape(&typeface.designer),
                strip(self.of(face), ink, 2, &format!("{}, drawn", typeface.name))?,
                strip(&report.data.images(&real), Ink::Grey, 2, "the training glyphs")?,
            );
        }
        body += "</div>";
        let lead = "The upper line of each typeface was drawn by the model, the grey line below \
                    it is the typeface itself.";
        Ok(section("Every typeface trained on", lead, &body))
    }
}

/// The tracked group's glyphs with its region's dial turned down.
pub fn dial(report: &Report) -> Result<String> {
    let faces: Vec<usize> = (0..report.data.typefaces.len())
        .filter(|&face| report.data.owned_face(face) && report.trained(face))
        .collect();
    let wishes: Vec<Wish> = faces.iter().flat_map(|&face| spell(face, TEXT)).collect();
    let columns: Vec<Vec<f32>> = DIALS
        .iter()
        .map(|&at| {
            let drawing = Drawing { draw: 0, steps: report.drawing_steps, dial: Dial::At(at) };
            draw(report.model, report.data, &wishes, drawing)
        })
        .collect::<Result<_>>()?;
    let each = TEXT.len() * SIDE * SIDE;
    let mut rows = Vec::new();
    for (row, &face) in faces.iter().enumerate() {
        let typeface = &report.data.typefaces[face];
        let mut cells = vec![format!("<b class=own>{}</b>", escape(&typeface.name))];
        for (column, at) in columns.iter().zip(DIALS) {
            let title = format!("{}, dial at {at}", typeface.name);
            cells.push(strip(&column[row * each..][..each], Ink::Red, 2, &title)?);
        }
        rows.push(cells);
    }
    let table = gradroute::report::html::table(&["", "dial at 1", "½", "0"], rows);
    let left = match report.outcome.options.policy {
        PolicyChoice::Strict => "was learned from public typefaces alone",
        _ => "was learned where everybody trains, the group with a quarter of its weight",
    };
    let lead = format!(
        "The tracked group's region and style embedding, faded together, from the same noise. At 0 \
         what is left {left}. Public typefaces see the region off at every dial, so that nothing \
         else moves."
    );
    let losses = &report.outcome.losses.owned;
    let points = |pick: fn(&crate::evaluate::DialLoss) -> f64| {
        losses.iter().map(|at| (f64::from(at.dial), pick(at))).collect()
    };
    let chart = gradroute::report::charts::lines(
        &[
            gradroute::report::charts::Line {
                name: "region and style row",
                colour: "#b72b1d",
                points: points(|at| at.loss),
            },
            gradroute::report::charts::Line {
                name: "region alone",
                colour: "#c98a3a",
                points: points(|at| at.row_kept),
            },
        ],
        ["dial", "loss on the tracked group"],
        false,
    );
    Ok(section("The tracked group's dial", &lead, &(table + &chart)))
}

/// Colour of a group's glyphs.
pub fn ink(report: &Report, group: &str) -> Ink {
    let owned = report.model.has_region() && group == report.data.owned_group();
    if owned { Ink::Red } else { Ink::Black }
}

/// How a sample is called in captions.
pub fn name(report: &Report, sample: &Sample) -> String {
    let letter = &CHARACTERS[sample.character..=sample.character];
    format!("{letter} · {}", report.data.typefaces[sample.typeface].name)
}
