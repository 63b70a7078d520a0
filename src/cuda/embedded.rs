//! The kernels that the build script compiled and embedded.

use crate::{Error, Result};

/// One kernel source: its name and its fat binary, machine code and PTX.
pub(super) struct Kernel {
    pub(super) name: &'static str,
    pub(super) image: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The compute capabilities (80 for 8.0) that this build has machine code for, ascending; the lowest
/// as PTX too. Empty when it has no kernels.
pub fn architectures() -> &'static [u32] {
    ARCHITECTURES
}

/// Whether this build holds kernels.
///
/// # Errors
///
/// [`Error::KernelsNotBuilt`].
pub fn kernels_built() -> Result<()> {
    if KERNELS.is_empty() { Err(Error::KernelsNotBuilt) } else { Ok(()) }
}

/// The fat binary of a kernel source.
pub(super) fn image(name: &str) -> Result<&'static [u8]> {
    let kernel = KERNELS.iter().find(|kernel| kernel.name == name);
    kernel.map(|kernel| kernel.image).ok_or(Error::KernelsNotBuilt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_architectures_come_together() {
        assert_eq!(kernels_built().is_ok(), !architectures().is_empty());
        assert!(architectures().is_sorted());
        assert!(matches!(image("no_such_kernel"), Err(Error::KernelsNotBuilt)));
    }

    #[test]
    fn an_embedded_image_is_a_fat_binary_with_readable_ptx() {
        if kernels_built().is_err() {
            println!("skipped: this build has no kernels");
            return;
        }
        let image = image("abi_probe").unwrap();
        assert_eq!(image[..4], 0xBA55_ED50_u32.to_le_bytes());
        let text = String::from_utf8_lossy(image);
        assert!(text.contains(".visible .entry abi_probe("));
        assert!(text.contains(&format!(".target sm_{}", architectures()[0])));
    }
}
