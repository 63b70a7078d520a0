//! An answer in all forms: tables for a terminal, JSON, a page with pictures.

use comfy_table::{ContentArrangement, Table as Terminal, presets};
use gradroute::provenance::Estimate;
use gradroute::provenance::query::Citation;
use gradroute::report::html;
use serde::Serialize;

/// An answer, ready to be shown.
pub struct Shown {
    pub title: String,
    pub parts: Vec<Part>,
    /// The answer for programs.
    pub value: serde_json::Value,
}

/// A table with a title, a line that says how to read it, and pictures beside it.
#[derive(Default)]
pub struct Part {
    pub title: String,
    pub lead: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
    pub pictures: Vec<String>,
}

impl Shown {
    pub fn new(title: impl Into<String>, answer: &impl Serialize) -> gradroute::Result<Self> {
        // Through text: a value made directly would widen 0.1f32 to 0.10000000149.
        let value = serde_json::to_string(answer).and_then(|text| serde_json::from_str(&text));
        let value = value.map_err(|error| gradroute::Error::Refused {
            what: "this answer as JSON".into(),
            reason: error.to_string(),
        })?;
        Ok(Self { title: title.into(), parts: Vec::new(), value })
    }

    pub fn with(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }

    /// Adds what the answer rests on.
    pub fn citing(self, citation: &Citation) -> Self {
        let coverage = &citation.coverage;
        let model = match (coverage.share(), coverage.parameters) {
            (Some(share), Some(all)) => {
                format!("{} of {all} ({:.1} %)", coverage.parameters_recorded, 100.0 * share)
            }
            _ => format!("{}; the model's number is not known", coverage.parameters_recorded),
        };
        let steps = citation.steps.map_or("none".into(), |[a, b]| format!("{a} to {b}"));
        let facts = [
            ("ledger head", citation.ledger_head.clone()),
            ("policy", citation.policy_hash.clone()),
            ("steps", format!("{steps}, in {} segments", citation.segments.len())),
            ("sketch", format!("{:?}, seed {}", citation.sketch, citation.seed)),
            ("samples seen", format!("{} of {}", coverage.samples_seen, coverage.samples)),
            ("parameters recorded", model),
        ];
        self.with(Part {
            title: "Rests on".into(),
            rows: facts.map(|(name, fact)| vec![name.into(), fact]).into(),
            ..Part::default()
        })
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for part in &self.parts {
            text += &format!("\n{}\n", part.title);
            if !part.rows.is_empty() {
                let mut table = Terminal::new();
                table.load_style(presets::UTF8_HORIZONTAL_ONLY);
                table.set_content_arrangement(ContentArrangement::Disabled);
                if !part.head.is_empty() {
                    table.set_header(&part.head);
                }
                table.add_rows(&part.rows);
                text += &format!("{table}\n");
            }
            if !part.lead.is_empty() {
                text += &format!("{}\n", part.lead);
            }
        }
        text
    }

    /// As one HTML page.
    pub fn page(&self) -> String {
        let sections: String = self.parts.iter().map(Part::section).collect();
        let title = html::escape(&self.title);
        html::page(&self.title, &format!("<h1>{title}</h1>"), &sections)
    }
}

impl Part {
    fn section(&self) -> String {
        let head: Vec<String> = self.head.iter().map(|it| html::escape(it)).collect();
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(|it| html::escape(it)).collect());
        let mut body = self.pictures.concat();
        if !self.rows.is_empty() {
            body += &html::table(&head, rows);
        }
        html::section(&html::escape(&self.title), &html::escape(&self.lead), &body)
    }
}

/// Names for a table's head.
pub fn head<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).into()
}

/// A number at the precision of a table.
pub fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".into(),
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.3e}"),
        size if size < 1.0 => format!("{value:.4}"),
        _ => format!("{value:.3}"),
    }
}

/// A number with its deviation.
pub fn estimate(it: &Estimate) -> String {
    format!("{} ± {}", number(it.value), number(it.deviation))
}

/// A part of a whole.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
