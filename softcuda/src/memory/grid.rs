//! What blocks of one launch do to global memory, and in which order.

/// A launch as global memory sees it.
#[derive(Debug)]
pub struct Grid {
    pub number: u64,
}
