//! Finds the PTX text in what a program hands to the driver: plain text, a fat binary, a cubin that
//! carries its PTX, or an object file with a fat binary in it.
//!
//! Input is not trusted: every offset is checked, and nothing larger than [`MAX_TEXT`] is made of it.
//!
//! ```
//! use softcuda::container::ptx;
//!
//! let text = ".version 8.0\n.target sm_80\n.address_size 64\n";
//! assert_eq!(ptx(text.as_bytes(), 90)?, text);
//! assert!(ptx(b"\x7fELF, and no more of it", 90).is_err());
//! # Ok::<(), softcuda::container::ContainerError>(())
//! ```

mod elf;
mod fatbin;
mod pick;

pub use fatbin::WRAPPER_MAGIC;
pub use pick::{Target, runs_on};

/// Largest PTX text accepted.
pub const MAX_TEXT: usize = 256 << 20;

/// Why no PTX was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    #[error("not a module: {0}")]
    Malformed(String),
    /// There is code, but none that this device can run.
    #[error("no code for sm_{arch}: the module holds {found}")]
    NoCode { arch: u32, found: String },
}

type Found<T> = Result<T, ContainerError>;

fn malformed<T>(what: impl Into<String>) -> Found<T> {
    Err(ContainerError::Malformed(what.into()))
}

/// One piece of code in a container.
#[derive(Debug)]
enum Code {
    Ptx(Vec<u8>),
    /// Machine code for an architecture: softcuda can't execute it.
    Machine(u32),
}

/// The bytes that a container beginning with `head` occupies, if its beginning tells: for pointers that
/// come without a length. `None` for text, which ends with a zero byte.
pub fn extent(head: &[u8; 64]) -> Option<u64> {
    fatbin::extent(head).or_else(|| elf::extent(head))
}

/// The PTX text in `image` that runs best on compute capability `arch` (90 for 9.0).
///
/// # Errors
///
/// If the image is malformed, or holds nothing for this device.
pub fn ptx(image: &[u8], arch: u32) -> Found<String> {
    let found = if fatbin::is(image) {
        fatbin::entries(image)?
    } else if elf::is(image) {
        elf::entries(image)?
    } else {
        vec![Code::Ptx(image.to_vec())]
    };
    let text = pick::best(found, arch)?;
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    let text = String::from_utf8_lossy(&text[..end]).into_owned();
    if !text.contains(".version") {
        return malformed("neither PTX, fat binary nor ELF");
    }
    Ok(text)
}

/// Little-endian numbers at checked offsets.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn part(&self, from: u64, bytes: u64) -> Found<&'a [u8]> {
        let range = from
            .checked_add(bytes)
            .and_then(|end| self.0.get(usize::try_from(from).ok()?..usize::try_from(end).ok()?));
        range.map_or_else(|| malformed(format!("ends before byte {from} + {bytes}")), Ok)
    }

    fn u16(&self, at: u64) -> Found<u16> {
        let bytes = self.part(at, 2)?;
        Ok(u16::from_le_bytes(bytes.try_into().expect("two bytes")))
    }

    fn u32(&self, at: u64) -> Found<u32> {
        let bytes = self.part(at, 4)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&self, at: u64) -> Found<u64> {
        let bytes = self.part(at, 8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }
}
