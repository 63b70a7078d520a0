//! Which layers and which features a policy speaks of.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A glob over layer paths: `*` any text, dots included, `?` one character, `[ab]` one of a
/// set, `{a,b}` one of several.
///
/// ```
/// use gradroute::routing::LayerGlob;
/// let convolutions: LayerGlob = "{down,mid}.*.conv1".parse()?;
/// assert!(convolutions.matches("down.0.conv1") && !convolutions.matches("up.0.conv1"));
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerGlob(GlobMatcher);

impl LayerGlob {
    /// Whether a layer's path matches as a whole.
    pub fn matches(&self, path: &str) -> bool {
        self.0.is_match(path)
    }

    /// The glob as text.
    pub fn as_str(&self) -> &str {
        self.0.glob().glob()
    }
}

impl PartialEq for LayerGlob {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl FromStr for LayerGlob {
    type Err = Error;

    fn from_str(glob: &str) -> Result<Self> {
        match Glob::new(glob) {
            Ok(parsed) if !glob.is_empty() => Ok(Self(parsed.compile_matcher())),
            Ok(_) => Err(Error::argument("layers", "a glob over layer paths", "\"\"")),
            Err(error) => Err(Error::argument("layers", "a glob over layer paths", error)),
        }
    }
}

impl TryFrom<String> for LayerGlob {
    type Error = Error;

    fn try_from(glob: String) -> Result<Self> {
        glob.parse()
    }
}

impl From<LayerGlob> for String {
    fn from(glob: LayerGlob) -> Self {
        glob.as_str().into()
    }
}

/// Some of a layer's features, whatever its width.
///
/// As text: `32..48` (the end excluded), `..16` the first 16, `-16..` the last 16, `7` one
/// feature, several of these with commas between; or `owner`, every feature whose index is the
/// id of one of the owner's categories (the rows of a table with one row per category).
///
/// ```
/// use gradroute::routing::Features;
/// let last: Features = "-16..".parse()?;
/// assert_eq!(last.resolve(48, &[]).unwrap(), [32..48]);
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Features {
    /// Ranges `start..end`; a negative bound counts from the end, no end means the end.
    Ranges(Vec<(i64, Option<i64>)>),
    /// Features whose index is the id of one of the owner's categories.
    Owner,
}

impl Features {
    /// The ranges within `0..width`, sorted, those that touch joined; `owner` are the ids that
    /// [`Features::Owner`] stands for.
    ///
    /// # Errors
    /// The range that is empty or exceeds `width`, as text.
    pub fn resolve(&self, width: usize, owner: &[u32]) -> Result<Vec<Range<usize>>, String> {
        let bound = |at: i64| if at < 0 { at.saturating_add_unsigned(width as u64) } else { at };
        let given: Vec<(i64, Option<i64>)> = match self {
            Self::Ranges(ranges) => ranges.clone(),
            Self::Owner => owner.iter().map(|&id| (id.into(), Some(i64::from(id) + 1))).collect(),
        };
        let mut ranges = Vec::with_capacity(given.len());
        for range in given {
            let (start, end) = (bound(range.0), range.1.map_or(width as i64, bound));
            let name = || text_of(&[range]);
            if start < 0 || end < 0 || end as usize > width || start as usize > width {
                return Err(format!("features {} exceed its width, {width}", name()));
            }
            if start >= end {
                return Err(format!("features {} of its {width} are none", name()));
            }
            ranges.push(start as usize..end as usize);
        }
        join(&mut ranges);
        Ok(ranges)
    }
}

impl FromStr for Features {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.trim() == "owner" {
            return Ok(Self::Owner);
        }
        let ranges: Option<Vec<_>> = text.split(',').map(|part| range_of(part.trim())).collect();
        let expected = "`owner`, or ranges such as `32..48`, `..16`, `-16..`, `7`";
        ranges
            .map(Self::Ranges)
            .ok_or_else(|| Error::argument("features", expected, format!("{text:?}")))
    }
}

impl TryFrom<String> for Features {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Features> for String {
    fn from(features: Features) -> Self {
        features.to_string()
    }
}

impl From<Range<usize>> for Features {
    fn from(range: Range<usize>) -> Self {
        Self::Ranges(vec![(range.start as i64, Some(range.end as i64))])
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Owner => f.write_str("owner"),
            Self::Ranges(ranges) => f.write_str(&text_of(ranges)),
        }
    }
}

/// Sorts ranges and joins those that overlap or touch.
pub(super) fn join(ranges: &mut Vec<Range<usize>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, range| {
        let joined = next.start <= range.end;
        if joined {
            range.end = range.end.max(next.end);
        }
        joined
    });
}

/// `start..end`, either side optional, or one index.
fn range_of(text: &str) -> Option<(i64, Option<i64>)> {
    let Some((start, end)) = text.split_once("..") else {
        let at: i64 = text.parse().ok()?;
        // The feature after the last one is not 0.
        return Some((at, if at == -1 { None } else { Some(at.checked_add(1)?) }));
    };
    let start = if start.is_empty() { 0 } else { start.parse().ok()? };
    let end = if end.is_empty() { None } else { Some(end.parse().ok()?) };
    Some((start, end))
}

fn text_of(ranges: &[(i64, Option<i64>)]) -> String {
    let one = |&(start, end): &(i64, Option<i64>)| match end {
        Some(end) => format!("{start}..{end}"),
        None => format!("{start}.."),
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str, width: usize) -> Result<Vec<Range<usize>>, String> {
        text.parse::<Features>().unwrap().resolve(width, &[1, 2, 5])
    }

    fn one(range: Range<usize>) -> Vec<Range<usize>> {
        vec![range]
    }

    #[test]
    fn ranges_resolve_to_any_width() {
        assert_eq!(resolved("-16..", 48).unwrap(), one(32..48));
        assert_eq!(resolved("..16", 16).unwrap(), one(0..16));
        assert_eq!(resolved("..", 3).unwrap(), one(0..3));
        assert_eq!(resolved("-3..-1", 8).unwrap(), one(5..7));
        assert_eq!(resolved("9, 2..4, 3..5, -1", 10).unwrap(), [2..5, 9..10]);
        assert_eq!(resolved("owner", 6).unwrap(), [1..3, 5..6]);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        assert!(resolved("-16..", 8).unwrap_err().contains("-16.. exceed its width, 8"));
        assert!(resolved("4..9", 8).unwrap_err().contains("4..9 exceed"));
        assert!(resolved("owner", 5).unwrap_err().contains("5..6 exceed"));
        assert!(resolved("5..5", 8).unwrap_err().contains("are none"));
        for wrong in ["", "a", "1...2", "1..2,", "0x3", "owners"] {
            assert!(wrong.parse::<Features>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn text_has_one_form() {
        for (text, form) in
            [("..16", "0..16"), ("7", "7..8"), ("-1", "-1.."), (" 1 ,2.. ", "1..2, 2..")]
        {
            let features: Features = text.parse().unwrap();
            assert_eq!(features.to_string(), form);
            assert_eq!(form.parse::<Features>().unwrap(), features);
        }
    }

    #[test]
    fn a_broken_glob_is_named() {
        let error = "a.{b".parse::<LayerGlob>().unwrap_err().to_string();
        assert!(error.contains("layers") && error.contains("a.{b"), "{error}");
        assert!("".parse::<LayerGlob>().is_err());
    }
}
