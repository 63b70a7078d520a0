//! `cargo xtask evaluate`: measurements over several seeds, resumable, recorded in `benches/record/`.

mod amount;
mod attenuation;
mod categories;
mod chart;
mod duplicates;
mod lds;
mod prevention;
mod removal;
mod retraining;
mod scale;
mod stamp;
mod statistics;
mod study;

use anyhow::Result;
use clap::Subcommand;

/// What can be measured.
#[derive(Subcommand)]
pub enum Evaluation {
    /// Switching a region off against never having trained on its owner: runs of the example
    /// over several seeds, about five minutes each on two cores. What finished runs came to lies in
    /// benches/record/attenuation and is not measured again; to measure anew, remove it there
    /// and the runs in runs/evaluate/attenuation.
    Attenuation(attenuation::Arguments),
    /// Telling planted copies from what is there once, at any time of the run.
    Duplicates(study::Arguments),
    /// Drawing planted glyphs again, with the guard and without.
    Prevention(study::Arguments),
    /// Linear datamodeling score: recorded influence against models retrained on halves of the
    /// data, about two minutes for digits and half an hour for glyphs on one idle core. What was
    /// retrained is kept in runs/evaluate and not repeated; so in the next two.
    Lds(retraining::Arguments),
    /// Retraining without the samples that score highest for a query, against random ones.
    Removal(retraining::Arguments),
    /// Retraining without a category, against the category's share of the record.
    Categories(retraining::Arguments),
    /// A top-100 query over an index of a million samples (33 GB, made under target/): speed beside
    /// plain reading, memory, and what int8 loses; or, with --engines, the same answer from
    /// DataFusion and Spark.
    Scale(scale::Arguments),
}

impl Evaluation {
    /// Measures and records.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Attenuation(arguments) => attenuation::run(&arguments),
            Self::Duplicates(arguments) => duplicates::run(&arguments),
            Self::Prevention(arguments) => prevention::run(&arguments),
            Self::Lds(arguments) => lds::run(&arguments),
            Self::Removal(arguments) => removal::run(&arguments),
            Self::Categories(arguments) => categories::run(&arguments),
            Self::Scale(arguments) => scale::run(&arguments),
        }
    }
}

/// The command behind a page, with the options `(name, value, default)` that are not at their default.
fn command(what: &str, options: &[(&str, u64, u64)]) -> String {
    let other = options.iter().filter(|(_, value, default)| value != default);
    let other: String = other.map(|(name, value, _)| format!(" --{name} {value}")).collect();
    format!("cargo xtask evaluate {what}{other}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_what_is_not_the_default() {
        let options = [("seeds", 4, 3), ("steps", 800, 800), ("repeats", 1, 3)];
        let said = "cargo xtask evaluate lds digits --seeds 4 --repeats 1";
        assert_eq!(command("lds digits", &options), said);
        assert_eq!(command("duplicates", &options[1..2]), "cargo xtask evaluate duplicates");
    }
}
