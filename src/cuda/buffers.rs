//! Which buffers a plan needs, of which lengths: the one description that both ways of launching are
//! held to, views and raw addresses.

use cudarc::driver::sys::CUdeviceptr;

use super::call::Pointers;
use super::plan::Common;
use crate::{Error, Result};

/// Buffers of a layer, without the workspace, in the order of the fields of [`Pointers`].
pub(super) const BUFFERS: usize = 14;
/// The first of those that are written.
const OUTPUTS: usize = 7;
/// What a workspace is aligned to.
const WORKSPACE_ALIGNMENT: u64 = 256;

/// Whether a call needs a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Without it nothing can be launched.
    Needed,
    /// It is checked where it is given.
    Allowed,
    /// The op has no such input, or the output is not asked for.
    Refused,
}

/// A buffer as a plan wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: &'static str,
    pub(super) presence: Presence,
    pub(super) elements: u64,
    /// Bytes of an element, a multiple of which it begins at.
    pub(super) size: u64,
}

/// An input that an op has, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operand {
    pub(super) presence: Presence,
    pub(super) elements: u64,
}

impl Operand {
    pub(super) const NONE: Self = Self { presence: Presence::Refused, elements: 0 };

    pub(super) fn new(needed: bool, elements: u64) -> Self {
        Self { presence: if needed { Presence::Needed } else { Presence::Allowed }, elements }
    }
}

/// The inputs by which ops differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operands {
    pub(super) x: Operand,
    pub(super) dy: Operand,
    pub(super) weight: Operand,
    pub(super) tokens: Operand,
    /// Whether rows and routing are needed even with nothing asked of the layer itself.
    pub(super) rows: bool,
}

impl Operands {
    pub(super) const NONE: Self = Self {
        x: Operand::NONE,
        dy: Operand::NONE,
        weight: Operand::NONE,
        tokens: Operand::NONE,
        rows: false,
    };
}

impl Common {
    /// Every buffer of a call, in the order of the fields of [`Pointers`].
    pub(super) fn wanted(&self) -> [Wanted; BUFFERS] {
        let (layer, wish, request) = (&self.layer, &self.wish, &self.wish.request);
        let Operands { x, dy, weight, tokens, rows } = self.operands;
        let (samples, outputs) = (u64::from(layer.samples), u64::from(layer.outputs));
        let native = self.dtype.size() as u64;
        let grad = if wish.native { native } else { 4 };
        let any = rows || self.forms() || self.bias_asked() || request.dx || wish.touched;
        let routed = wish.routing.is_some();
        let input = |name, operand: Operand, size| {
            let Operand { presence, elements } = operand;
            Wanted { name, presence, elements, size }
        };
        let output = |name, asked, elements, size| {
            let presence = if asked { Presence::Needed } else { Presence::Refused };
            Wanted { name, presence, elements, size }
        };
        let per_sample = |name, has: bool, needed, elements, size| {
            let operand = if has { Operand::new(needed, elements) } else { Operand::NONE };
            input(name, operand, size)
        };
        let has_dx = request.dx && x.presence != Presence::Refused;
        [
            input("x", x, native),
            input("dy", dy, native),
            input("weight", weight, native),
            input("tokens", tokens, 4),
            per_sample("offsets", true, any, samples + 1, 8),
            per_sample("categories", routed, any, samples, 4),
            per_sample("gates", routed, false, samples, 4),
            output("dx", has_dx, x.elements, native),
            output("dw", request.dw, self.weights, grad),
            output("db", request.db && self.bias, outputs, grad),
            output("sq_norm", request.norms, samples, 4),
            output("sq_norm_bias", wish.bias_norms && self.bias, samples, 4),
            output("sketch", self.sketched(), samples * u64::from(self.sketch_length()), 4),
            output("touched", wish.touched, u64::from(layer.regions.max(1)), 1),
        ]
    }
}

impl Pointers {
    /// All but the workspace, in the order of [`Common::wanted`].
    fn all(&self) -> [CUdeviceptr; BUFFERS] {
        [
            self.x,
            self.dy,
            self.weight,
            self.tokens,
            self.offsets,
            self.categories,
            self.gates,
            self.dx,
            self.dw,
            self.db,
            self.sq_norm,
            self.sq_norm_bias,
            self.sketch,
            self.touched,
        ]
    }
}

/// A buffer's name, and what goes before it.
#[derive(Clone, Copy)]
struct Name<'a>(&'a str, &'static str);

impl From<Name<'_>> for String {
    fn from(Name(prefix, name): Name) -> Self {
        format!("{prefix}{name}")
    }
}

/// Bytes that a call reads or writes.
struct Range<'a> {
    name: Name<'a>,
    begin: u64,
    end: u64,
    written: bool,
}

/// Checks the addresses of a call's layers, each with what goes before its names, and of their
/// workspace: none that is needed is 0, each is aligned, and none overlaps what is written.
pub(super) fn check_addresses<const LAYERS: usize>(
    layers: [(&str, &Common, &Pointers); LAYERS],
    workspace: (CUdeviceptr, u64),
) -> Result<()> {
    let mut ranges = Vec::with_capacity(LAYERS * BUFFERS + 1);
    for (prefix, common, at) in layers {
        for (place, (wanted, address)) in common.wanted().into_iter().zip(at.all()).enumerate() {
            let Wanted { name, presence, elements, size } = wanted;
            if presence == Presence::Refused || elements == 0 {
                continue;
            }
            let range = (address, elements.saturating_mul(size), size);
            let needed = presence == Presence::Needed;
            ranges.extend(checked(Name(prefix, name), range, needed, place >= OUTPUTS)?);
        }
    }
    let (address, bytes) = workspace;
    if bytes > 0 {
        let range = (address, bytes, WORKSPACE_ALIGNMENT);
        ranges.extend(checked(Name("", "workspace"), range, true, true)?);
    }
    check_overlaps(&ranges)
}

/// A buffer of so many bytes and such an alignment, if it is there.
fn checked(
    name: Name<'_>,
    (begin, bytes, alignment): (u64, u64, u64),
    needed: bool,
    written: bool,
) -> Result<Option<Range<'_>>> {
    if begin == 0 {
        if needed {
            return Err(Error::argument(name, "a buffer, since the plan needs it", "none"));
        }
        return Ok(None);
    }
    if !begin.is_multiple_of(alignment) {
        let expected = format!("an address that is a multiple of {alignment} bytes");
        return Err(Error::argument(name, expected, format!("{begin:#x}")));
    }
    Ok(Some(Range { name, begin, end: begin.saturating_add(bytes), written }))
}

fn check_overlaps(ranges: &[Range]) -> Result<()> {
    for (at, one) in ranges.iter().enumerate() {
        for other in &ranges[..at] {
            let apart = one.end <= other.begin || other.end <= one.begin;
            if !apart && (one.written || other.written) {
                let (output, other) = if one.written { (one, other) } else { (other, one) };
                let given = format!("one that overlaps `{}`", String::from(other.name));
                return Err(Error::argument(output.name, "memory of its own", given));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::{Properties, Wish, plan_linear};
    use crate::ops::plan::Request;
    use crate::problem::{Dtype, Linear, Rows};

    /// 3 samples of 4 rows, 8 inputs, 16 outputs: everything but a sketch.
    fn common() -> Common {
        let rows = Rows::uniform(3, 4).unwrap();
        let layer = Linear::new(rows, 8, 16).unwrap().with_bias(true);
        let request = Request { sketch: false, ..Request::everything() };
        let wish = Wish { request, bias_norms: true, touched: true, ..Wish::default() };
        let properties = Properties { multiprocessors: 4, shared_bytes: 99 << 10 };
        let plan = plan_linear(&layer, Dtype::Bf16, wish, &properties).unwrap();
        *super::super::queue::Queue::common(&plan)
    }

    /// Everything apart, 4 KiB each.
    fn apart() -> Pointers {
        Pointers {
            x: 0x1000,
            dy: 0x2000,
            weight: 0x3000,
            offsets: 0x4000,
            dx: 0x5000,
            dw: 0x6000,
            db: 0x7000,
            sq_norm: 0x8000,
            sq_norm_bias: 0x9000,
            touched: 0xA000,
            workspace: 0xB000,
            ..Pointers::default()
        }
    }

    fn error(at: Pointers) -> String {
        let layers = [("", &common(), &at)];
        check_addresses(layers, (at.workspace, 64)).unwrap_err().to_string()
    }

    #[test]
    fn lengths_are_the_layers() {
        let bytes = |name| {
            let wanted = common().wanted().into_iter().find(|wanted| wanted.name == name);
            wanted.map(|wanted| (wanted.presence, wanted.elements * wanted.size)).unwrap()
        };
        assert_eq!(bytes("x"), (Presence::Needed, 12 * 8 * 2));
        assert_eq!(bytes("dy"), (Presence::Needed, 12 * 16 * 2));
        assert_eq!(bytes("dw"), (Presence::Needed, 16 * 8 * 4));
        assert_eq!(bytes("offsets"), (Presence::Needed, 4 * 8));
        assert_eq!(bytes("touched"), (Presence::Needed, 1));
        for absent in ["tokens", "categories", "gates", "sketch"] {
            assert_eq!(bytes(absent).0, Presence::Refused, "{absent}");
        }
    }

    #[test]
    fn what_is_missing_misaligned_or_overlaps_is_named() {
        let layers = [("", &common(), &apart())];
        check_addresses(layers, (0xB000, 64)).unwrap();
        check_addresses(layers, (0, 0)).unwrap();
        assert!(error(Pointers { dw: 0, ..apart() }).contains("`dw`"));
        assert!(error(Pointers { offsets: 0, ..apart() }).contains("`offsets`"));
        assert!(error(Pointers { workspace: 0, ..apart() }).contains("`workspace`"));
        assert!(error(Pointers { x: 0x1001, ..apart() }).contains("multiple of 2"));
        assert!(error(Pointers { dw: 0x6002, ..apart() }).contains("multiple of 4"));
        assert!(error(Pointers { workspace: 0xB080, ..apart() }).contains("multiple of 256"));
        // Its last byte is the first of the squared norms.
        let text = error(Pointers { dw: 0x8004 - 16 * 8 * 4, ..apart() });
        assert!(text.contains("`sq_norm`") && text.contains("`dw`"), "{text}");
        let text = error(Pointers { dx: 0x2000, ..apart() });
        assert!(text.contains("`dx`: ") && text.contains("overlaps `dy`"), "{text}");
        // Inputs may share memory.
        let shared = Pointers { x: 0x2000, ..apart() };
        check_addresses([("", &common(), &shared)], (0xB000, 64)).unwrap();
    }
}
