//! Lowering of instructions on memory. Source: PTX ISA, sections 9.7.9 and 9.7.13.

use std::collections::HashSet;

use super::{Access, Address, Atomic, Load, Memory, Operation, Scope, Semantics, Store, Target};
use crate::counters::Class;
use crate::ir::{Inst, Op, Reg, Space, Ty};
use crate::lower::{Lowered, Lowerer, operands};
use crate::pressure::Uses;
use crate::ptx::ast::{Instruction, Operand};

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Option<Access>> {
    Ok(Some(match i.parts[0] {
        "ld" | "ldu" => Access::Load(load(l, i)?),
        "st" if !i.parts.contains(&"async") && !i.parts.contains(&"bulk") => {
            Access::Store(store(l, i)?)
        }
        "atom" | "red" if !i.parts.contains(&"async") => Access::Atomic(atomic(l, i)?),
        "cvta" | "isspacep" | "mapa" | "getctarank" => Access::Address(address(l, i)?),
        "membar" | "fence" => match fence(l, i)? {
            Some(access) => access,
            None => return Ok(None),
        },
        "prefetch" | "prefetchu" | "discard" | "applypriority" => hint(l, i)?,
        "createpolicy" => policy(l, i)?,
        _ => return Ok(None),
    }))
}

/// Compilers write `atom` for results that nobody reads, as ptxas makes `red` of it: so blocks that only count
/// together don't talk to each other.
pub fn forget_unread(code: &mut [Inst], uses: &[Uses]) {
    let read: HashSet<Reg> = uses.iter().flat_map(|uses| &uses.reads).copied().collect();
    for inst in code {
        if let Op::Memory(access) = &mut inst.op
            && let Access::Atomic(atomic) = &mut **access
            && atomic.old.iter().all(|target| !read.contains(&target.reg))
        {
            atomic.old.clear();
        }
    }
}

/// What the modifiers of a load, store or atomic say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Modifiers {
    pub space: Space,
    pub semantics: Semantics,
    pub scope: Scope,
    pub vector: usize,
    pub ty: Option<Ty>,
    /// A cache policy follows as last operand.
    pub policy: bool,
}

impl Modifiers {
    pub fn new(semantics: Semantics, scope: Scope) -> Self {
        Self { space: Space::Generic, semantics, scope, vector: 1, ty: None, policy: false }
    }

    /// Takes a modifier in; false if it is none that all instructions on memory share.
    pub fn accept(&mut self, part: &str) -> bool {
        match part {
            "global" => self.space = Space::Global,
            "shared" | "shared::cta" => self.space = Space::Shared,
            "shared::cluster" => self.space = Space::Cluster,
            "const" => self.space = Space::Const,
            "local" => self.space = Space::Local,
            "param" | "param::entry" | "param::func" => self.space = Space::Param,
            "relaxed" => self.semantics = Semantics::Relaxed,
            "acquire" => self.semantics = Semantics::Acquire,
            "release" => self.semantics = Semantics::Release,
            "acq_rel" => self.semantics = Semantics::AcquireRelease,
            "v2" => self.vector = 2,
            "v4" => self.vector = 4,
            "v8" => self.vector = 8,
            "L2::cache_hint" => self.policy = true,
            _ => match scope(part) {
                Some(scope) => self.scope = scope,
                None if eviction(part) => {}
                None if self.ty.is_none() => match Ty::parse(part) {
                    Some(ty) => self.ty = Some(ty),
                    None => return false,
                },
                None => return false,
            },
        }
        true
    }
}

fn scope(part: &str) -> Option<Scope> {
    Some(match part {
        "cta" => Scope::Block,
        "cluster" => Scope::Cluster,
        "gpu" => Scope::Gpu,
        "sys" => Scope::System,
        _ => return None,
    })
}

/// Hints that change nothing here.
fn eviction(part: &str) -> bool {
    matches!(
        part,
        "L1::evict_normal"
            | "L1::evict_unchanged"
            | "L1::evict_first"
            | "L1::evict_last"
            | "L1::no_allocate"
            | "L2::evict_normal"
            | "L2::evict_first"
            | "L2::evict_last"
            | "L2::64B"
            | "L2::128B"
            | "L2::256B"
    )
}

/// The modifiers of a load or store.
fn modifiers<'a>(l: &Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<(Modifiers, Ty)> {
    let mut found = Modifiers::new(Semantics::Weak, Scope::System);
    for part in &i.parts[1..] {
        match *part {
            "volatile" => found.semantics = Semantics::Volatile,
            "mmio" => found.semantics = Semantics::Relaxed,
            "weak" | "unified" => {}
            "nc" if i.parts[0] == "ld" => {}
            "ca" | "cg" | "cs" | "lu" | "cv" if i.parts[0] != "st" => {}
            "wb" | "cg" | "cs" | "wt" if i.parts[0] == "st" => {}
            other if found.accept(other) => {}
            other => return l.error(format!("{} does not know .{other}", i.parts[0])),
        }
    }
    let Some(ty) = found.ty else { return l.error(format!("{} without a type", i.parts[0])) };
    let bytes = ty.bytes() as usize * found.vector;
    let global = matches!(found.space, Space::Global | Space::Generic);
    let most = if global { super::elements::WIDEST } else { 16 };
    if ty == Ty::Pred || bytes > most {
        return l.error(format!("{} of {bytes} bytes", i.parts.join(".")));
    }
    let expected = 2 + usize::from(found.policy);
    if i.operands.len() != expected {
        return l.error(format!("{} takes {expected} operands", i.parts.join(".")));
    }
    Ok((found, ty))
}

/// An address operand with what the modifiers say of the access.
pub(super) fn memory<'a>(
    l: &mut Lowerer<'a>,
    found: &Modifiers,
    operand: &Operand<'a>,
) -> Lowered<Memory> {
    let (addr, space) = l.address(operand, found.space)?;
    Ok(Memory { space, addr, semantics: found.semantics, scope: found.scope })
}

fn load<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Load> {
    let (found, ty) = modifiers(l, i)?;
    if matches!(found.semantics, Semantics::Release | Semantics::AcquireRelease) {
        return l.error("a load does not release");
    }
    let from = memory(l, &found, &i.operands[1])?;
    let elements = vector(l, &found, &i.operands[0])?;
    let elements = elements.iter().map(|operand| target(l, ty, operand));
    Ok(Load { from, width: ty.bytes() as usize, elements: elements.collect::<Lowered<_>>()? })
}

fn target<'a>(l: &mut Lowerer<'a>, ty: Ty, operand: &Operand<'a>) -> Lowered<Target> {
    let reg = l.dst(ty, operand)?;
    let bits = l.register_type(operand).unwrap_or(ty).bits();
    if bits < ty.bits() {
        return l.error(format!("a register of {bits} bits for {ty:?}"));
    }
    Ok(Target { reg, extend: ty.signed().then_some(bits) })
}

/// The elements of a vector operand, as many as the modifiers say.
pub(super) fn vector<'a, 'o>(
    l: &Lowerer<'a>,
    found: &Modifiers,
    operand: &'o Operand<'a>,
) -> Lowered<&'o [Operand<'a>]> {
    let elements = l.vector(operand);
    if elements.len() != found.vector {
        return l.error(format!("expected {} elements, found {}", found.vector, elements.len()));
    }
    Ok(elements)
}

fn store<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Store> {
    let (found, ty) = modifiers(l, i)?;
    if matches!(found.semantics, Semantics::Acquire | Semantics::AcquireRelease) {
        return l.error("a store does not acquire");
    }
    let to = memory(l, &found, &i.operands[0])?;
    if matches!(to.space, Space::Const | Space::Param) {
        return l.error("a store to memory that is read only");
    }
    let elements = vector(l, &found, &i.operands[1])?;
    let elements = elements.iter().map(|operand| l.src(ty, operand));
    let elements = elements.collect::<Lowered<Vec<_>>>()?;
    let wide = |src: &crate::ir::Src| matches!(src, crate::ir::Src::Reg(Reg::Q(_)));
    if (ty == Ty::B128) != elements.iter().any(wide) {
        return l.error("128-bit registers go with .b128");
    }
    Ok(Store { to, width: ty.bytes() as usize, elements })
}

/// Operations and the types each knows, alone and in vectors.
const OPERATIONS: [(&str, Operation, &[Ty]); 10] = [
    (
        "add",
        Operation::Add,
        &[
            Ty::U32,
            Ty::S32,
            Ty::U64,
            Ty::S64,
            Ty::F32,
            Ty::F64,
            Ty::F16,
            Ty::F16x2,
            Ty::Bf16,
            Ty::Bf16x2,
        ],
    ),
    ("inc", Operation::Inc, &[Ty::U32]),
    ("dec", Operation::Dec, &[Ty::U32]),
    ("min", Operation::Min, EXTREMES),
    ("max", Operation::Max, EXTREMES),
    ("and", Operation::And, &[Ty::B32, Ty::B64]),
    ("or", Operation::Or, &[Ty::B32, Ty::B64]),
    ("xor", Operation::Xor, &[Ty::B32, Ty::B64]),
    ("exch", Operation::Exchange, &[Ty::B32, Ty::B64, Ty::B128]),
    ("cas", Operation::CompareAndSwap, &[Ty::B16, Ty::B32, Ty::B64, Ty::B128]),
];

const EXTREMES: &[Ty] =
    &[Ty::U32, Ty::S32, Ty::U64, Ty::S64, Ty::F16, Ty::F16x2, Ty::Bf16, Ty::Bf16x2];

fn atomic<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Atomic> {
    let name = i.parts.join(".");
    let mut found = Modifiers::new(Semantics::Relaxed, Scope::Gpu);
    let mut operation = None;
    for part in &i.parts[1..] {
        match OPERATIONS.iter().find(|(name, ..)| name == part) {
            Some(entry) if operation.is_none() => operation = Some(entry),
            _ if *part == "noftz" || found.accept(part) => {}
            _ => return l.error(format!("{} does not know .{part}", i.parts[0])),
        }
    }
    let (Some((_, op, types)), Some(ty)) = (operation, found.ty) else {
        return l.error(format!("{name} without an operation or a type"));
    };
    let vector_of_floats = ty.float() && found.space != Space::Shared && ty != Ty::F64;
    let bytes = ty.bytes() as usize * found.vector;
    let scalar_half = matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2);
    let alone = !scalar_half || *op == Operation::Add;
    let known = types.contains(&ty)
        && match found.vector {
            1 => alone,
            _ => vector_of_floats && bytes <= 16,
        };
    if !known {
        return l.error(format!("{name} is not defined"));
    }
    // `atom` gives the old value.
    let (old, rest) = match i.parts[0] {
        "atom" => (i.operands.first(), i.operands.get(1..).unwrap_or(&[])),
        _ => (None, i.operands.as_slice()),
    };
    let compares = *op == Operation::CompareAndSwap;
    if rest.len() != 2 + usize::from(compares) + usize::from(found.policy)
        || i.parts[0] == "red" && (compares || *op == Operation::Exchange)
    {
        return l.error(format!("{name} with {} operands", i.operands.len()));
    }
    let at = memory(l, &found, &rest[0])?;
    if !matches!(at.space, Space::Global | Space::Generic | Space::Shared | Space::Cluster) {
        return l.error("atomics work on global and shared memory");
    }
    let operands = vector(l, &found, &rest[1])?.iter().map(|operand| l.src(ty, operand));
    let operands = operands.collect::<Lowered<Vec<_>>>()?;
    let swap = if compares { Some(l.src(ty, &rest[2])?) } else { None };
    let old = match old {
        None | Some(Operand::Sink) => Vec::new(),
        Some(operand) => {
            let elements = vector(l, &found, operand)?.iter();
            elements.map(|operand| target(l, ty, operand)).collect::<Lowered<_>>()?
        }
    };
    Ok(Atomic { at, op: *op, ty, old, operands, swap })
}

fn space_of(part: &str) -> Option<Space> {
    let mut found = Modifiers::new(Semantics::Weak, Scope::System);
    (found.accept(part) && (found.space != Space::Generic || part == "generic"))
        .then_some(found.space)
}

fn address<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Address> {
    let space = i.parts.iter().find_map(|part| space_of(part));
    let wide = if i.parts.contains(&"u64") { Ty::U64 } else { Ty::U32 };
    Ok(match (i.parts[0], space) {
        ("cvta", Some(space)) => {
            let [dst, src] = operands(i)?;
            if wide != Ty::U64 {
                return l.error("cvta of 32-bit addresses");
            }
            let (dst, src) = (l.dst(wide, dst)?, l.src(wide, src)?);
            match i.parts.contains(&"to") {
                true => Address::ToSpace { space, dst, src },
                false => Address::ToGeneric { space, dst, src },
            }
        }
        ("isspacep", Some(space)) => {
            let [dst, src] = operands(i)?;
            let Reg::P(dst) = l.dst(Ty::Pred, dst)? else {
                return l.error("isspacep gives a predicate");
            };
            Address::IsIn { space, dst, src: l.src(Ty::U64, src)? }
        }
        ("mapa", space) => {
            let [dst, src, rank] = operands(i)?;
            let (dst, src) = (l.dst(wide, dst)?, l.src(wide, src)?);
            Address::Map { generic: space.is_none(), dst, src, rank: l.src(Ty::U32, rank)? }
        }
        ("getctarank", space) => {
            let [dst, src] = operands(i)?;
            let (dst, src) = (l.dst(Ty::U32, dst)?, l.src(wide, src)?);
            Address::Rank { generic: space.is_none(), dst, src }
        }
        _ => return l.error(format!("{} without a state space", i.parts[0])),
    })
}

/// All fences but those of the asynchronous proxy.
fn fence<'a>(l: &Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Option<Access>> {
    let parts = &i.parts[1..];
    Ok(Some(match *parts {
        ["proxy", proxy, ..] if proxy.starts_with("async") => return Ok(None),
        ["proxy", "alias"] => Access::Hint(Class::Fence),
        ["proxy", proxy, ..] if proxy.starts_with("tensormap") => Access::Hint(Class::Fence),
        ["mbarrier_init", ..] => Access::Hint(Class::Fence),
        ["cta"] => Access::Fence(Scope::Block),
        ["gl"] => Access::Fence(Scope::Gpu),
        ["sys"] => Access::Fence(Scope::System),
        ["sc" | "acq_rel" | "acquire" | "release", name] | [name] => match scope(name) {
            Some(scope) => Access::Fence(scope),
            None => return l.error(format!("{} of no known scope", i.parts.join("."))),
        },
        _ => return l.error(format!("unknown fence {}", i.parts.join("."))),
    }))
}

fn hint<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Access> {
    let space = i.parts.iter().find_map(|part| space_of(part)).unwrap_or(Space::Generic);
    let Some(operand) = i.operands.first() else { return l.error("expected an address") };
    l.address(operand, space)?;
    Ok(Access::Hint(Class::Load))
}

/// A cache policy is an opaque number.
fn policy<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Access> {
    let Some(operand) = i.operands.first() else { return l.error("expected a register") };
    l.dst(Ty::B64, operand)?;
    Ok(Access::Hint(Class::Move))
}
