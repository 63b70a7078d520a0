//! Buffers that live from call to call, so that a call of a size seen before allocates nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::flush::{Buckets, Hashes};
use super::packed::Lines;

/// What one thread needs while it forms tiles.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// The tile being formed.
    pub(crate) tile: Vec<f32>,
    /// Operands gathered for it: the patches of a convolution, say.
    pub(crate) panel: Vec<f32>,
    /// A strip of blocks, summed over samples.
    pub(crate) sums: Lines,
    /// A tile times the input side's signs.
    pub(crate) projected: Vec<f32>,
    /// A count sketch being built.
    pub(crate) buckets: Buckets,
    /// The tile's hashes.
    pub(crate) hashes: Hashes,
}

impl Scratch {
    fn bytes(&self) -> usize {
        let floats = bytes([&self.tile, &self.panel, &self.projected]);
        floats + self.sums.bytes() + self.buckets.bytes() + self.hashes.bytes()
    }
}

/// One [`Scratch`] per thread of the pool.
#[derive(Debug, Default)]
pub(crate) struct Threads(Vec<Mutex<Scratch>>);

impl Threads {
    /// Makes sure that every thread of the current pool finds one.
    pub(crate) fn prepare(&mut self) {
        let threads = rayon::current_num_threads();
        if self.0.len() < threads {
            self.0.resize_with(threads, Mutex::default);
        }
    }

    /// This thread's own. To be held only while no other rayon task can start on this thread.
    pub(crate) fn own(&self) -> MutexGuard<'_, Scratch> {
        let at = rayon::current_thread_index().unwrap_or(0);
        // The scratch is rewritten before it is read, so a panic elsewhere does not matter.
        self.0[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes held by all of them.
    pub(crate) fn bytes(&self) -> usize {
        let own = |scratch: &Mutex<Scratch>| {
            scratch.lock().unwrap_or_else(PoisonError::into_inner).bytes()
        };
        self.0.iter().map(own).sum()
    }
}

/// A buffer that only grows.
pub(crate) trait Grow {
    /// The first `len` elements, of any content.
    fn grown(&mut self, len: usize) -> &mut [f32];
}

impl Grow for Vec<f32> {
    fn grown(&mut self, len: usize) -> &mut [f32] {
        if self.len() < len {
            self.resize(len, 0.0);
        }
        &mut self[..len]
    }
}

/// Bytes that vectors hold.
pub(crate) fn bytes<'a>(vectors: impl IntoIterator<Item = &'a Vec<f32>>) -> usize {
    vectors.into_iter().map(|vector| size_of::<f32>() * vector.capacity()).sum()
}

/// The buffers of a [`super::Cpu`].
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    pub(crate) wide: super::linear::Wide,
    pub(crate) linear: super::linear::Buffers,
    pub(crate) lora: super::lora::Between,
    pub(crate) conv: super::conv2d::ConvBuffers,
    pub(crate) norm: super::norm::NormBuffers,
    pub(crate) embedding: super::embedding::EmbeddingBuffers,
}

impl Workspace {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let matrices = self.wide.bytes() + self.linear.bytes() + self.lora.bytes();
        matrices + self.conv.bytes() + self.norm.bytes() + self.embedding.bytes()
    }
}
