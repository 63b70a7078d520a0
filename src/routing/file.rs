//! The file form of a policy.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::policy::{Block, DepthProfile, OwnedRegion, Policy, error};
use crate::{Error, Result};

/// The document's root.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<B, R, P> {
    block: B,
    #[serde(default)]
    region: R,
    #[serde(default)]
    profile: P,
}

type Read = Document<Vec<Block>, Vec<OwnedRegion>, Vec<DepthProfile>>;
type Written<'a> = Document<&'a [Block], &'a [OwnedRegion], &'a [DepthProfile]>;

impl Policy {
    /// Reads a TOML document: `[[block]]`s in forward order, `[[region]]`s, `[[profile]]`s, with
    /// the fields of [`Block`], [`OwnedRegion`] and [`DepthProfile`]. Unknown keys are errors.
    ///
    /// ```
    /// use gradroute::routing::{Policy, SwitchRule};
    /// let policy = Policy::from_toml(r#"
    ///     [[block]]
    ///     name = "all"
    ///     layers = "*"
    ///
    ///     [[region]]
    ///     name = "script"
    ///     owner = "style/script"
    ///     switch = { public_off = 0.5 }
    ///     parts = [{ layers = "*.conv1", outputs = "-16.." }]
    ///
    ///     [[profile]]
    ///     category = "style"
    ///     blocks.all = { route = 0.5 }
    /// "#)?;
    /// assert_eq!(policy.regions()[0].switch, SwitchRule::PublicOff(0.5));
    /// assert_eq!(Policy::from_toml(&policy.to_toml())?, policy);
    /// # Ok::<(), gradroute::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Policy`] naming line and column, or as [`Policy::new`].
    pub fn from_toml(text: &str) -> Result<Self> {
        let read: Read = toml::from_str(text).map_err(|mistake: toml::de::Error| {
            let at = mistake.span().map_or(0, |span| span.start);
            let before = text.get(..at).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
            error(format!("line {line}, column {column}"), mistake.message())
        })?;
        Self::new(read.block, read.region, read.profile)
    }

    /// [`Policy::from_toml`] of a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Policy`] with the file's name in the place.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Io { path: path.into(), source })?;
        Self::from_toml(&text).map_err(|mistake| match mistake {
            Error::Policy { place, problem } => {
                error(format!("{}, {place}", path.display()), problem)
            }
            other => other,
        })
    }

    /// The policy as a TOML document that [`Policy::from_toml`] reads back as it was.
    pub fn to_toml(&self) -> String {
        let document: Written =
            Document { block: self.blocks(), region: self.regions(), profile: self.profiles() };
        toml::to_string(&document).expect("names, texts and finite numbers have a TOML form")
    }
}
