//! Which rows of a batch belong to which sample.

use std::ops::Range;
use std::sync::Arc;

use crate::{Error, Result};

/// Row grouping of a batch: sample `n` owns rows `offsets[n]..offsets[n + 1]`.
///
/// Cheap to clone. Offsets are 64-bit, so that one batch may hold more than 2³² rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    offsets: Arc<[u64]>,
}

impl Rows {
    /// From `N + 1` offsets, starting at 0 and never falling.
    ///
    /// # Errors
    /// [`Error::Argument`] naming `offsets`, with the first entry that breaks the rule.
    pub fn new(offsets: impl Into<Arc<[u64]>>) -> Result<Self> {
        let offsets = offsets.into();
        match offsets.first() {
            Some(0) => {}
            Some(first) => return Err(Error::argument("offsets[0]", "0", first)),
            None => return Err(Error::argument("offsets", "at least one entry", "none")),
        }
        if let Some(n) = offsets.windows(2).position(|pair| pair[0] > pair[1]) {
            return Err(Error::argument(
                format!("offsets[{}]", n + 1),
                format!("at least offsets[{n}] = {}", offsets[n]),
                offsets[n + 1],
            ));
        }
        let total = offsets[offsets.len() - 1];
        if isize::try_from(total).is_err() {
            return Err(Error::argument("offsets", "rows that can be addressed", total));
        }
        Ok(Self { offsets })
    }

    /// The same number of rows for every sample.
    pub fn uniform(samples: usize, rows: usize) -> Result<Self> {
        super::product("rows", &[samples, rows])?;
        Self::new((0..=samples).map(|n| (n * rows) as u64).collect::<Vec<_>>())
    }

    /// Number of samples, `N`.
    pub fn samples(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of rows of the whole batch, `R`.
    pub fn total(&self) -> usize {
        self.offsets[self.offsets.len() - 1] as usize
    }

    /// Rows of sample `n`.
    ///
    /// # Panics
    /// When `n` is not below [`Rows::samples`].
    pub fn range(&self, n: usize) -> Range<usize> {
        self.offsets[n] as usize..self.offsets[n + 1] as usize
    }

    /// The `N + 1` offsets.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// The largest number of rows any one sample has.
    pub fn longest(&self) -> usize {
        (0..self.samples()).map(|n| self.range(n).len()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Rows;

    #[test]
    fn bad_offsets_name_the_entry() {
        let text = |offsets: &[u64]| Rows::new(offsets).unwrap_err().to_string();
        assert!(text(&[]).contains("at least one entry"));
        assert!(text(&[1, 2]).contains("offsets[0]"));
        assert!(text(&[0, 4, 3]).contains("offsets[2]"));
        assert!(text(&[0, u64::MAX]).contains("addressed"));
    }

    #[test]
    fn ranges_cover_the_batch() {
        let rows = Rows::new([0, 3, 3, 7]).unwrap();
        assert_eq!((rows.samples(), rows.total(), rows.longest()), (3, 7, 4));
        assert_eq!(rows.range(1), 3..3);
        assert_eq!(Rows::uniform(2, 5).unwrap().offsets(), [0, 5, 10]);
        assert!(Rows::uniform(usize::MAX, 2).is_err());
    }
}
