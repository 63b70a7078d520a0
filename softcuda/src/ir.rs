//! Lowered code: what the machine executes. Registers are resolved to slots, labels to positions,
//! symbols to addresses, so that executing an instruction looks nothing up.
//!
//! ```
//! use softcuda::ir::Ty;
//!
//! let pair = Ty::parse("f16x2").expect("a type of PTX");
//! assert_eq!((pair.bits(), pair.float()), (32, true));
//! assert_eq!(Ty::parse("i32"), None);
//! ```

use crate::counters::Class;
use crate::fault::Line;

pub const LANES: usize = 32;
/// One bit per lane.
pub type Mask = u32;

/// A register's slot in its warp. 8-, 16- and 32-bit registers are `R`, 64-bit ones `D`, 128-bit ones the
/// pair `D(n), D(n + 1)`, predicates one bit per lane of `P`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reg {
    P(u32),
    R(u32),
    D(u32),
    Q(u32),
}

/// A scalar or packed type, as an opcode's suffix names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ty {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F32x2,
    F64,
    U16x2,
    S16x2,
    E4m3,
    E5m2,
    E4m3x2,
    E5m2x2,
}

impl Ty {
    /// From a suffix without its dot.
    pub fn parse(suffix: &str) -> Option<Ty> {
        Some(match suffix {
            "pred" => Ty::Pred,
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "b128" => Ty::B128,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "tf32" => Ty::Tf32,
            "f32" => Ty::F32,
            "f32x2" => Ty::F32x2,
            "f64" => Ty::F64,
            "u16x2" => Ty::U16x2,
            "s16x2" => Ty::S16x2,
            "e4m3" => Ty::E4m3,
            "e5m2" => Ty::E5m2,
            "e4m3x2" => Ty::E4m3x2,
            "e5m2x2" => Ty::E5m2x2,
            _ => return None,
        })
    }

    /// Width in bits; 1 for predicates.
    pub fn bits(self) -> u32 {
        match self {
            Ty::Pred => 1,
            Ty::B8 | Ty::U8 | Ty::S8 | Ty::E4m3 | Ty::E5m2 => 8,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 | Ty::E4m3x2 | Ty::E5m2x2 => 16,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::Tf32 | Ty::F16x2 | Ty::Bf16x2 => 32,
            Ty::U16x2 | Ty::S16x2 => 32,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 | Ty::F32x2 => 64,
            Ty::B128 => 128,
        }
    }

    pub fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    pub fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64 | Ty::S16x2)
    }

    pub fn float(self) -> bool {
        matches!(
            self,
            Ty::F16
                | Ty::F16x2
                | Ty::Bf16
                | Ty::Bf16x2
                | Ty::Tf32
                | Ty::F32
                | Ty::F32x2
                | Ty::F64
                | Ty::E4m3
                | Ty::E5m2
                | Ty::E4m3x2
                | Ty::E5m2x2
        )
    }
}

/// A read-only special register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// `%tid.x` … by dimension.
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    /// The warp's clock, and its upper half.
    Clock,
    ClockHigh,
    DynamicSmemSize,
    /// Where dynamic shared memory begins.
    DynamicSmemBegin,
    TotalSmemSize,
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    IsExplicitCluster,
    Zero,
}

/// A source operand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Src {
    Reg(Reg),
    /// Bits, already of the instruction's type.
    Imm(u64),
    Special(Special),
    /// Local-space address of an offset in the lane's own stack frame.
    Frame(u32),
}

/// A predicate source: the slot and whether it is negated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PredSrc {
    pub slot: u32,
    pub negated: bool,
}

/// A state space of a memory access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    Generic,
    Global,
    Shared,
    /// Shared memory of any block of the cluster.
    Cluster,
    Const,
    Local,
    /// The kernel's parameters.
    Param,
}

/// An address operand: base plus offset in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Addr {
    pub base: Src,
    pub offset: i64,
}

/// One lowered instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Inst {
    /// Lanes whose predicate is false skip it.
    pub guard: Option<PredSrc>,
    pub op: Op,
    /// Line in the PTX text, from 1.
    pub line: u32,
    /// Index into [`Kernel::sources`], 0 for unknown.
    pub source: u32,
}

/// What an instruction does, by family; each family's module holds its own enum, lowering and execution.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    Control(Control),
    Alu(Box<crate::alu::Alu>),
    Memory(Box<crate::memory::Access>),
    Warp(Box<crate::collective::Collective>),
    Matrix(Box<crate::matrix::Matrix>),
    Async(Box<crate::bulk::Async>),
}

impl Op {
    pub fn class(&self) -> Class {
        match self {
            Op::Control(_) => Class::Control,
            Op::Alu(op) => op.class(),
            Op::Memory(op) => op.class(),
            Op::Warp(op) => op.class(),
            Op::Matrix(op) => op.class(),
            Op::Async(op) => op.class(),
        }
    }
}

/// Control flow. Targets are positions in [`Kernel::code`].
#[derive(Debug, Clone, PartialEq)]
pub enum Control {
    Branch {
        target: u32,
    },
    /// `brx.idx`: out of range is undefined, here a fault.
    BranchTable {
        index: Src,
        targets: Vec<u32>,
    },
    Call(Box<Call>),
    Return,
    Exit,
    Trap,
    Nop,
    /// `nanosleep`, `griddepcontrol`, `setmaxnreg`…: a hint, but one at which others may run.
    Yield,
}

/// A call with its parameters in the caller's frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub callee: Callee,
    /// `(offset in the caller's frame, bytes)` of every argument.
    pub arguments: Vec<(u32, u32)>,
    /// The same for the returned values.
    pub returns: Vec<(u32, u32)>,
    /// Bytes of the caller's frame: the callee's begins behind it.
    pub frame: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Callee {
    /// Index into [`Kernel::functions`].
    Function(u32),
    /// A register with a function's address: `FUNCTION_WINDOW + index`.
    Indirect(Src),
    Printf,
    AssertFail,
}

/// A function a kernel reaches.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionCode {
    pub name: String,
    pub entry: u32,
    pub frame: u32,
    /// `(offset in its own frame, bytes)`.
    pub parameters: Vec<(u32, u32)>,
    pub returns: Vec<(u32, u32)>,
    /// Register slots `[from, to)` of each bank, saved around a call that recurses.
    pub slots: [(u32, u32); 3],
    pub recursive: bool,
}

/// A place in a source file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Source {
    pub file: String,
    pub line: u32,
    /// Where its function was inlined, an earlier entry of [`Kernel::sources`], or 0.
    pub caller: u32,
}

/// A kernel ready to run.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub name: String,
    pub code: Vec<Inst>,
    /// Number of predicate, 32-bit and 64-bit slots.
    pub slots: [u32; 3],
    /// Functions it may call; the first is the kernel itself.
    pub functions: Vec<FunctionCode>,
    /// `(offset, bytes)` of each parameter.
    pub parameters: Vec<(u32, u32)>,
    pub parameter_bytes: u32,
    /// Static shared memory; dynamic shared memory begins behind it.
    pub shared_bytes: u32,
    pub shared_align: u32,
    pub local_bytes: u32,
    pub const_bytes: u32,
    /// `.maxntid`/`.reqntid` product, if given, and whether it is required.
    pub max_threads: Option<u32>,
    pub required_block: Option<[u32; 3]>,
    pub required_cluster: Option<[u32; 3]>,
    pub min_blocks: u32,
    pub max_registers: Option<u32>,
    /// Estimated 32-bit hardware registers per thread.
    pub registers: u32,
    /// Places in source files; entry 0 is unknown.
    pub sources: Vec<Source>,
    /// `.version` × 10 and `.target`'s number.
    pub ptx_version: u32,
    pub target: u32,
}

impl Kernel {
    /// Where the instruction at `pc` comes from.
    pub fn line(&self, pc: u32) -> Line {
        let inst = &self.code[(pc as usize).min(self.code.len() - 1)];
        let mut at = inst.source;
        let mut places = std::iter::from_fn(|| {
            let source = self.sources.get(at as usize).filter(|_| at > 0)?;
            // A caller always comes before what is inlined into it.
            at = source.caller;
            Some((source.file.clone(), source.line))
        });
        let source = places.next();
        Line { ptx: inst.line, source, inlined: places.collect() }
    }

    /// True if blocks of a launch can talk to each other: it must run in a fixed order to repeat.
    pub fn talks(&self) -> bool {
        self.code.iter().any(|inst| match &inst.op {
            Op::Memory(access) => access.talks(),
            Op::Async(op) => op.talks(),
            _ => false,
        })
    }
}

/// Generic addresses inside these windows mean another space; each is 4 GiB wide.
pub const SHARED_WINDOW: u64 = 0x0000_0701_0000_0000;
pub const LOCAL_WINDOW: u64 = 0x0000_0702_0000_0000;
pub const PARAM_WINDOW: u64 = 0x0000_0703_0000_0000;
pub const FUNCTION_WINDOW: u64 = 0x0000_0704_0000_0000;
pub const WINDOW_BYTES: u64 = 1 << 32;
/// Device allocations lie from here up.
pub const DEVICE_BASE: u64 = 0x0000_0a00_0000_0000;
