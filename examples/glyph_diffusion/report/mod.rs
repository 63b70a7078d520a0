//! `report.html`: whose data shaped what, pictures first, all in one file.

mod faces;
mod influence;
mod picture;

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use gradroute::provenance::Accumulator;
use gradroute::report::{charts, html};

use crate::data::Dataset;
use crate::governed::Governed;
use crate::options::PolicyChoice;
use crate::outcome::Outcome;
use crate::train::Progress;

/// Everything the report shows.
pub struct Report<'a> {
    pub data: &'a Dataset,
    /// The averaged weights.
    pub model: &'a Governed,
    pub influence: &'a Accumulator,
    pub outcome: &'a Outcome,
    pub progress: &'a Progress,
    /// DDIM steps for the pictures.
    pub drawing_steps: usize,
}

impl Report<'_> {
    /// Draws, asks, and writes the page.
    pub fn write(&self, path: &Path) -> Result<()> {
        let faces = faces::Faces::draw(self)?;
        let mut sections = faces.section(self)?;
        if self.model.has_region() && !self.outcome.options.without_owned {
            sections += &faces::dial(self)?;
        }
        sections += &influence::heat_maps(self)?;
        sections += &influence::nearest(self, &faces)?;
        sections += &influence::duplicates(self)?;
        sections += &self.coverage();
        sections += &self.run();
        let title = "Whose data shaped what";
        let page = html::page(title, &self.header(title, &faces)?, &sections);
        std::fs::write(path, page).with_context(|| path.display().to_string())
    }

    fn header(&self, title: &str, faces: &faces::Faces) -> Result<String> {
        let groups = self.data.groups();
        let faces_of = &self.data.typefaces;
        let learned = (0..faces_of.len()).filter(|&face| self.trained(face));
        let designers: HashSet<&str> =
            learned.clone().map(|face| faces_of[face].designer.as_str()).collect();
        let mut header = format!(
            "<h1>{title}</h1><p class=lead>A small diffusion model learned {} typefaces by {} \
             designers {} a routing policy. The <span class=own>{}</span> {}. Every sample's \
             influence was recorded while training.</p><div class=hero>",
            learned.count(),
            designers.len(),
            if self.model.has_region() { "under" } else { "without" },
            self.data.owned_group(),
            match (self.outcome.options.without_owned, self.model.has_region()) {
                (true, _) => "group was left out of the training",
                (false, true) if self.outcome.options.policy == PolicyChoice::Strict => {
                    "group's rights are tracked: it may train only its own region of the model"
                }
                (false, true) => {
                    "group's rights are tracked: it trains its own region of the model, and all else \
                     with a quarter of its weight"
                }
                (false, false) => "group is measured apart, but trains the same weights as all",
            },
        );
        for group in groups {
            header += &faces.hero(self, group)?;
        }
        header += "</div>";
        header += &self.tiles();
        Ok(header)
    }

    /// Whether a typeface's glyphs were among those to train on.
    fn trained(&self, face: usize) -> bool {
        let left_out = self.outcome.options.without_owned && self.data.owned_face(face);
        !left_out && self.data.samples.iter().any(|sample| sample.typeface == face)
    }

    /// The figures that matter, large.
    fn tiles(&self) -> String {
        let losses = &self.outcome.losses;
        let mut tiles = String::from("<div class=tiles>");
        let mut tile = |value: String, label: &str| {
            write!(tiles, "<div class=tile><b>{value}</b><span>{label}</span></div>")
                .expect("a string takes any text");
        };
        tile(format!("{:.4}", losses.public), "loss on public typefaces");
        let (first, last) = (&losses.owned[0], &losses.owned[losses.owned.len() - 1]);
        let owned = match self.model.has_region() {
            true => "loss on the tracked group, dial at 1",
            false => "loss on the tracked group",
        };
        tile(format!("{:.4}", first.loss), owned);
        if losses.owned.len() > 1 {
            let times = last.loss / first.loss;
            tile(format!("{:.4} ({times:.1}×)", last.loss), "the same, dial at 0");
        }
        tile(format!("{:.1} %", 100.0 * self.outcome.coverage), "of the parameters observed");
        tile(format!("{:.0} s", self.outcome.train_seconds), "of training");
        tiles + "</div>"
    }

    fn coverage(&self) -> String {
        html::section(
            "What was observed",
            "Influence is only as complete as the layers it was recorded in. A parameter without \
             a per-sample record would be named here.",
            &format!("<pre>{}</pre>", html::escape(&self.progress.coverage_report)),
        )
    }

    /// Training curve and facts.
    fn run(&self) -> String {
        let outcome = self.outcome;
        let curve = charts::Line {
            name: "training loss",
            colour: "#223968",
            points: smoothed(&self.progress.curve),
        };
        let mut body = String::from("<div class=two><div>");
        body += &charts::lines(&[curve], ["step", "mean squared error"], true);
        body += "</div><div>";
        let facts = [
            ("policy", format!("{:?}", outcome.options.policy).to_lowercase()),
            ("policy hash", outcome.policy_hash.clone().unwrap_or("none".into())),
            ("seed", outcome.options.seed.to_string()),
            ("steps × batch", format!("{} × {}", outcome.steps, outcome.options.batch)),
            ("parameters", outcome.parameters.to_string()),
            ("images per second", format!("{:.0}", outcome.images_per_second)),
            ("ledger", outcome.ledger.clone()),
        ];
        let rows = facts.into_iter().map(|(name, value)| {
            vec![name.to_owned(), format!("<code>{}</code>", html::escape(&value))]
        });
        body += &html::table(&["", ""], rows);
        body += "</div></div>";
        html::section("The run", "Loss of each step, averaged over its neighbours.", &body)
    }
}

/// About 200 points, each the mean of the steps around it.
fn smoothed(curve: &[f32]) -> Vec<(f64, f64)> {
    let width = (curve.len() / 200).max(1);
    let window = 4 * width;
    (0..curve.len())
        .step_by(width)
        .map(|at| {
            let near =
                &curve[at.saturating_sub(window / 2)..(at + window / 2 + 1).min(curve.len())];
            let mean = near.iter().map(|&loss| f64::from(loss)).sum::<f64>() / near.len() as f64;
            (at as f64, mean)
        })
        .collect()
}
