//! Who may change what: categories, blocks, regions, depth profiles, the policy file, and the
//! mask tables the ops read.
//!
//! A [`Policy`] is written once, in code or as TOML, without knowing the model's widths. It is
//! compiled for a [`ModelLayout`] and the samples' [`Categories`] into a [`CompiledPolicy`]:
//! a [`LayerRouting`] per layer for the ops, and [`Switches`] per batch for the forward pass.
//!
//! | question | answer |
//! |---|---|
//! | weight in a block no profile mentions | route 1, flow 1 |
//! | owner's route weight in an owned region | 1, whatever its weight in the block |
//! | anybody else's | 0 |
//! | owner's route weight outside of its region | its profile's, as everybody's |
//! | flow weight in an owned region | the block's |
//! | two profiles cover a category | the deeper one decides where it says something |
//! | a sample with several labels | the weight of smallest magnitude decides, per block and region |
//!
//! ```
//! use gradroute::problem::NormKind;
//! use gradroute::routing::{Categories, LayerSpec, ModelLayout, Policy};
//!
//! let policy = Policy::from_toml(r#"
//!     [[block]]
//!     name = "body"
//!     layers = "*"
//!
//!     [[region]]
//!     name = "script"
//!     owner = "style/script"
//!     switch = "strict"
//!     parts = [{ layers = "*conv1", outputs = "-16.." }] # wherever conv1 is wider by 16
//!
//!     [[profile]]
//!     category = "style" # public: trains everything but the region
//!
//!     [[profile]]
//!     category = "style/script" # owned: trains the region, nothing else
//!     route = 0.0
//! "#)?;
//! let layout = ModelLayout::new(vec![
//!     LayerSpec::conv2d("conv1", 32, 48, [3, 3], 1, true),
//!     LayerSpec::norm("norm2", NormKind::Group { groups: 3 }, 48, true).reading("conv1"),
//!     LayerSpec::conv2d("conv2", 48, 32, [3, 3], 1, true).reading("norm2"),
//! ])?;
//! let categories = Categories::new(["style/serif/gelasio", "style/script/kristi"])?;
//! let compiled = policy.compile(&layout, &categories)?;
//!
//! let conv2 = &compiled.layers()[2]; // the region was carried here
//! assert_eq!(conv2.regions().region_at(0, 32), 1);
//! assert_eq!((conv2.route(0, 0), conv2.route(0, 1)), (1.0, 0.0));
//! assert_eq!((conv2.route(1, 0), conv2.route(1, 1)), (0.0, 1.0));
//! let switches = compiled.switches(7, 0, &[11, 12], &[0, 1])?;
//! assert_eq!(switches.region(0), [0.0, 1.0]); // the serif sample does not see it
//! # Ok::<(), gradroute::Error>(())
//! ```

mod category;
mod compile;
mod depth;
mod file;
mod hash;
mod layer;
mod layout;
mod pattern;
mod policy;
mod switches;
mod territory;

pub use category::{Categories, CategoryPath};
pub use compile::CompiledPolicy;
#[cfg(feature = "ledger")]
pub(crate) use depth::decide;
pub use hash::PolicyHash;
pub use layer::{LayerRouting, Region, RegionMap, Tile};
pub use layout::{LayerKind, LayerSpec, ModelLayout};
pub use pattern::{Features, LayerGlob};
pub use policy::{Block, DepthProfile, OwnedRegion, Policy, RegionPart, SwitchRule, Weights};
pub use switches::Switches;
