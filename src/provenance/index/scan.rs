//! One query against all samples of an index.

use std::ops::Range;
use std::sync::Mutex;
use std::thread;

use bytes::{Bytes, BytesMut};

use super::part::{Group, Part};
use super::{Index, Precision, ROWS};
use crate::provenance::Similarity;
use crate::provenance::influence::{check_query, dot, ranked, scale};
use crate::provenance::ledger::files::bad;
use crate::{Error, Result};

/// A score of every sample of an index.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    ids: Vec<u64>,
    scores: Vec<f64>,
}

impl Scores {
    /// Ids of the samples, in the index's order.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// Their scores.
    pub fn values(&self) -> &[f64] {
        &self.scores
    }

    /// The `count` samples of highest score, best first; equal scores by id.
    pub fn top(&self, count: usize) -> Vec<(u64, f64)> {
        ranked(&self.ids, self.scores.iter().copied(), count)
    }
}

impl Index {
    /// The scores of all samples, as [`Scorer::plain`](crate::provenance::Scorer::plain) gives
    /// them but for what the [`Precision`] takes off; in `f64`, the same bits at every call.
    ///
    /// Reads the tables once, or the one of `block`, each from front to back, two threads for
    /// each of rayon's so that reading and scoring overlap. Costs `samples · B · K`, holds 24
    /// bytes per sample and a row group of 16 384 rows per thread.
    ///
    /// # Errors
    /// [`Error::Argument`] when the query has the wrong size or is not finite, or there is no such
    /// block; [`Error::Ledger`] or [`Error::Io`] naming the table that cannot be read. That its
    /// content is what was written is checked by [`Index::verify`] alone.
    pub fn scores(
        &self,
        query: &[f32],
        similarity: Similarity,
        block: Option<usize>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Scores> {
        let len = self.sketch_len();
        check_query(self.blocks().len() * len, query)?;
        let blocks = self.range(block)?;
        // The table says whether there are so many samples.
        blocks.clone().next().map(|at| self.part(at)).transpose()?;
        let mut sums = Sums::new(self.samples());
        for (read, at) in blocks.clone().enumerate() {
            progress(read, blocks.len());
            let query: Vec<f64> = query[at * len..][..len].iter().map(|&it| it.into()).collect();
            self.add_block(at, &query, &mut sums, read == 0)?;
        }
        progress(blocks.len(), blocks.len());
        let asked = &query[blocks.start * len..blocks.end * len];
        let query_sq = asked.chunks_exact(len).map(|part| dot(part, part)).sum();
        let all = sums.products.iter().zip(&sums.squares);
        let scores = all.map(|(&product, &square)| scale(similarity, product, square, query_sq));
        let scores = scores.collect();
        Ok(Scores { ids: sums.ids, scores })
    }

    pub(super) fn range(&self, block: Option<usize>) -> Result<Range<usize>> {
        let blocks = self.blocks().len();
        match block {
            None => Ok(0..blocks),
            Some(block) if block < blocks => Ok(block..block + 1),
            Some(block) => Err(Error::argument("block", format!("below {blocks}"), block)),
        }
    }

    /// A block's table, opened.
    fn part(&self, at: usize) -> Result<Part> {
        let width = self.sketch_len() * self.precision().bytes();
        Part::open(&self.table(at), self.samples(), width)
    }

    /// The products of a block's part of a query with samples at these places.
    pub(super) fn products(&self, at: usize, query: &[f32], places: &[usize]) -> Result<Vec<f64>> {
        let len = self.sketch_len();
        let query: Vec<f64> = query[at * len..][..len].iter().map(|&it| it.into()).collect();
        let part = self.part(at)?;
        let (mut found, mut buffer) = (vec![0.0; places.len()], BytesMut::new());
        for group in 0..self.samples().div_ceil(ROWS) {
            if places.iter().all(|place| place / ROWS != group) {
                continue;
            }
            let (values, bytes) = part.read(group, buffer)?;
            let mut sums = Sums::new(ROWS.min(self.samples() - group * ROWS));
            for mut sums in sums.groups() {
                sums.add(self.precision(), &values, &query);
            }
            for (found, place) in found.iter_mut().zip(places) {
                if place / ROWS == group {
                    *found = sums.products[place % ROWS];
                }
            }
            drop(values);
            buffer = bytes.try_into_mut().unwrap_or_default();
        }
        Ok(found)
    }

    /// Adds a block's part of all sums; the first block says who the samples are.
    fn add_block(&self, at: usize, query: &[f64], sums: &mut Sums, first: bool) -> Result<()> {
        let path = self.table(at);
        let part = self.part(at)?;
        let left = Mutex::new(sums.groups().enumerate());
        let take = || left.lock().expect("nobody panics while taking the next").next();
        let work = || {
            let mut buffer = BytesMut::new();
            while let Some((at, mut sums)) = take() {
                let (group, bytes) = part.read(at, buffer)?;
                if !sums.identify(&group.ids, first) {
                    return Err(bad(&path, "its samples are not those of the other blocks"));
                }
                sums.add(self.precision(), &group, query);
                drop(group);
                buffer = bytes.try_into_mut().unwrap_or_default();
            }
            Ok(())
        };
        let threads = (2 * rayon::current_num_threads()).min(self.samples().div_ceil(ROWS));
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let ends = workers.into_iter().map(|it| it.join().expect("a worker does not panic"));
            ends.collect::<Result<Vec<()>>>().map(|_| ())
        })
    }
}

/// Running sums over the blocks, of all samples.
struct Sums {
    ids: Vec<u64>,
    products: Vec<f64>,
    squares: Vec<f64>,
}

/// The same of the samples of one row group.
struct GroupSums<'a> {
    ids: &'a mut [u64],
    products: &'a mut [f64],
    squares: &'a mut [f64],
}

impl Sums {
    fn new(samples: usize) -> Self {
        Self { ids: vec![0; samples], products: vec![0.0; samples], squares: vec![0.0; samples] }
    }

    fn groups(&mut self) -> impl Iterator<Item = GroupSums<'_>> + Send {
        let sums = self.products.chunks_mut(ROWS).zip(self.squares.chunks_mut(ROWS));
        let all = self.ids.chunks_mut(ROWS).zip(sums);
        all.map(|(ids, (products, squares))| GroupSums { ids, products, squares })
    }
}

impl GroupSums<'_> {
    /// Takes the ids over, or says whether they are the same.
    fn identify(&mut self, pages: &[Bytes], first: bool) -> bool {
        let given = pages.iter().flat_map(|page| page.as_chunks().0).copied();
        let given = given.map(u64::from_le_bytes);
        if first {
            self.ids.iter_mut().zip(given).for_each(|(id, given)| *id = given);
            return true;
        }
        given.eq(self.ids.iter().copied())
    }

    fn add(&mut self, precision: Precision, group: &Group, query: &[f64]) {
        let squares = group.squares.iter().flat_map(|page| page.as_chunks().0);
        for (sum, square) in self.squares.iter_mut().zip(squares) {
            *sum += f64::from_le_bytes(*square);
        }
        let scales = group.scales.iter().flat_map(|page| page.as_chunks().0);
        let mut sums = self.products.iter_mut().zip(scales);
        let mut products = Vec::new();
        for codes in &group.codes {
            products.resize(codes.len() / (query.len() * precision.bytes()), 0.0);
            precision.products(codes, query, &mut products);
            // Products first: they end before a sample of the next page is taken.
            for (product, (sum, scale)) in products.iter().zip(sums.by_ref()) {
                *sum += f64::from(f32::from_le_bytes(*scale)) * product;
            }
        }
    }
}
