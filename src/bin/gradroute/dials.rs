//! Grammar and help of `gradroute attenuate`.

use std::path::PathBuf;

use clap::Args;
use gradroute::provenance::{Dial, RowFade};
use serde::Serialize;

pub const AFTER: &str = "\
The dial:
  A category that owns a region of the policy is turned down by folding the dial into the weights
  that read the region: with every switch at 1 the model then computes what it computed with the
  region's switch at the dial. 1 leaves the category as trained, 0 takes it away. --dial may be
  given several times; where several apply to a region and block, the last does. All other tensors
  keep their bytes, and the file's metadata says what was done, in the entry
  gradroute.attenuation. The same input gives the same bytes. The checkpoint is held in memory
  about three times.

  For models that were trained without regions there is an approximation for single linear layers,
  provenance::Projection. It needs the layer's inputs on data to forget and data to keep, so it is
  a library call and no command.

Prediction and measurement:
  What is said from weights, policy and ledger is a prediction. Only losses on both checkpoints
  say what was done: --losses FILE, JSON, the losses of the same questions in the same order, and
  for a diffusion model at the same noise levels and noise:

    { \"before\": { \"blake3\": \"…\", \"forget\": [0.046, …], \"retain\": [0.033, …] },
      \"after\":  { \"blake3\": \"…\", \"forget\": [0.097, …], \"retain\": [0.033, …] } }

  The digests are those of the two files (printed here, and by b3sum); losses of other checkpoints
  are refused.

Without a ledger:
  --policy takes the policy's TOML and --layout the model's layers as JSON, the list that `layout`
  is in a ledger's run.json, or the layout of candle's Recorder serialized. There is no prediction
  of collateral then.

Examples:
  gradroute attenuate model.safetensors --ledger runs/ledger --dial style/script=0 --dry-run
  gradroute attenuate model.safetensors --ledger runs/ledger --dial style/script=0.25 \\
      --dial style/script=0@up --out faded.safetensors
  gradroute attenuate model.safetensors --ledger runs/ledger --dial style/script=0 --dry-run \\
      --losses losses.json --html measured.html
  gradroute attenuate model.safetensors --policy policy.toml --layout layout.json \\
      --dial style/script=0 --fade-rows condition.style=21 --out faded.safetensors";

#[derive(Args)]
pub struct AttenuateArguments {
    /// The checkpoint, safetensors; a layer's weight is the tensor `<layer>.weight`
    pub checkpoint: PathBuf,
    /// Where the dial of a category's regions goes, 0 to 1; for one block only with @BLOCK
    #[arg(long = "dial", value_name = "CATEGORY=α[@BLOCK]", required = true, value_parser = dial)]
    pub dials: Vec<DialArgument>,
    /// Directory of the ledger of the run that trained the checkpoint: policy, layout, influence
    #[arg(long, value_name = "DIR", required_unless_present = "policy")]
    pub ledger: Option<PathBuf>,
    /// The policy, TOML, where there is no ledger
    #[arg(long, value_name = "FILE", conflicts_with = "ledger", requires = "layout")]
    pub policy: Option<PathBuf>,
    /// The model's layers, JSON; for a ledger that does not record them
    #[arg(long, value_name = "FILE")]
    pub layout: Option<PathBuf>,
    /// Fade the rows that the regions own in an embedding towards one of its other rows
    #[arg(long, value_name = "LAYER=ROW", value_parser = row_fade)]
    pub fade_rows: Vec<RowFade>,
    /// The attenuated checkpoint; a file that is there already is left alone
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// Replace the file at --out
    #[arg(long, requires = "out")]
    pub force: bool,
    /// Say what would be changed, and write no checkpoint
    #[arg(long, conflicts_with = "out")]
    pub dry_run: bool,
    /// Losses on both checkpoints, JSON: report what was measured
    #[arg(long, value_name = "FILE")]
    pub losses: Option<PathBuf>,
    /// Categories listed under collateral
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
}

/// One `--dial`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DialArgument {
    pub category: String,
    pub at: f32,
    pub block: Option<String>,
}

impl DialArgument {
    pub fn parsed(&self) -> gradroute::Result<Dial> {
        let dial = Dial::new(&self.category, self.at)?;
        Ok(match &self.block {
            Some(block) => dial.in_block(block),
            None => dial,
        })
    }
}

impl std::fmt::Display for DialArgument {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} to {}", self.category, self.at)?;
        match &self.block {
            Some(block) => write!(f, " in {block}"),
            None => Ok(()),
        }
    }
}

/// Categories and blocks may hold `=` and `@` themselves: the last `=` with a number after it
/// divides them.
fn dial(text: &str) -> Result<DialArgument, String> {
    let parts = text.rmatch_indices('=').find_map(|(at, _)| {
        let (number, block) = match text[at + 1..].split_once('@') {
            Some((number, block)) => (number, Some(block)),
            None => (&text[at + 1..], None),
        };
        Some((&text[..at], number.trim().parse().ok()?, block))
    });
    let Some((category, at, block)) = parts else {
        return Err("expected CATEGORY=α or CATEGORY=α@BLOCK, such as style/script=0.25".into());
    };
    let dial = DialArgument {
        category: category.into(),
        at,
        block: block.map(std::borrow::ToOwned::to_owned),
    };
    dial.parsed().map(|_| dial).map_err(|error| error.to_string())
}

fn row_fade(text: &str) -> Result<RowFade, String> {
    let parts = text.rsplit_once('=').and_then(|(layer, row)| Some((layer, row.parse().ok()?)));
    match parts {
        Some((layer, neutral)) => Ok(RowFade { layer: layer.into(), neutral }),
        None => Err("expected LAYER=ROW, such as condition.style=21".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_are_read_from_the_right() {
        let of = |text: &str| {
            dial(text).map(|it| (it.category, it.at, it.block.unwrap_or_else(|| "-".into())))
        };
        let expected = |category: &str, at, block: &str| Ok((category.into(), at, block.into()));
        assert_eq!(of("style/script=0.25"), expected("style/script", 0.25, "-"));
        assert_eq!(of("style/@kristi=0@up 16²"), expected("style/@kristi", 0.0, "up 16²"));
        assert_eq!(of("a=1/b=.5@x=y"), expected("a=1/b", 0.5, "x=y"));
        for wrong in ["style/script", "style=x", "style=1.5", "style=NaN", "=0.5"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert_eq!(row_fade("a.b=3").unwrap(), RowFade { layer: "a.b".into(), neutral: 3 });
        assert!(row_fade("a.b").is_err());
    }
}
