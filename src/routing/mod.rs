//! Who may change what: categories, blocks, regions, depth profiles, the policy file, and the
//! mask tables the ops read.

mod layer;

pub use layer::{LayerRouting, Region, RegionMap, Tile};
