//! What the parser makes of a PTX text: names still unresolved, everything borrowed from the text.

/// A parsed module.
#[derive(Debug, Default)]
pub struct Module<'a> {
    /// `.version`, e.g. `(8, 7)`.
    pub version: (u32, u32),
    /// `.target`, e.g. `sm_90a`, `debug`.
    pub targets: Vec<&'a str>,
    /// Variables of the module scope, in their order.
    pub variables: Vec<Variable<'a>>,
    /// Kernels and functions; a declaration without a body has none.
    pub functions: Vec<Function<'a>>,
    /// `.file` numbers and paths.
    pub files: Vec<(u32, &'a str)>,
    /// `.alias new, old`.
    pub aliases: Vec<(&'a str, &'a str)>,
}

/// A kernel (`.entry`) or a function (`.func`).
#[derive(Debug)]
pub struct Function<'a> {
    pub name: &'a str,
    pub entry: bool,
    pub returns: Vec<Variable<'a>>,
    pub parameters: Vec<Variable<'a>>,
    /// `.maxntid`, `.reqntid`, `.minnctapersm`, `.maxnreg`, `.reqnctapercluster`, … with their numbers.
    pub directives: Vec<(&'a str, Vec<u32>)>,
    pub body: Option<Vec<Item<'a>>>,
    pub line: u32,
}

/// A variable in any state space, or a parameter.
#[derive(Debug, Clone)]
pub struct Variable<'a> {
    /// `global`, `shared`, `const`, `local`, `param`.
    pub space: &'a str,
    /// `extern`, `visible`, `weak`, `common` or empty.
    pub linkage: &'a str,
    pub name: &'a str,
    /// The element type as written, e.g. `b8`.
    pub ty: &'a str,
    /// Bytes of one element, vectors counted whole.
    pub size: u64,
    pub align: u64,
    /// Number of elements; `None` for `name[]`.
    pub count: Option<u64>,
    pub init: Vec<Init<'a>>,
    pub managed: bool,
    pub line: u32,
}

impl Variable<'_> {
    /// Bytes of the whole variable; 0 for an unsized array.
    pub fn bytes(&self) -> u64 {
        self.size * self.count.unwrap_or(0)
    }
}

/// One element of an initialiser.
#[derive(Debug, Clone, PartialEq)]
pub enum Init<'a> {
    /// Bits of the element.
    Bits(u64),
    /// Address of a variable plus an offset; `generic` if so written; the mask of `0xFF(name)`.
    Address { name: &'a str, offset: i64, generic: bool, mask: Option<u64> },
}

/// A statement of a body.
#[derive(Debug)]
pub enum Item<'a> {
    /// `.reg .b32 %r<10>;`: type, name, and the count if parameterised.
    Register {
        ty: &'a str,
        name: &'a str,
        count: Option<u32>,
    },
    Variable(Variable<'a>),
    Label {
        name: &'a str,
        line: u32,
    },
    /// `name: .branchtargets a, b;` or `.calltargets`.
    Targets {
        name: &'a str,
        targets: Vec<&'a str>,
    },
    /// `name: .callprototype …;`
    Prototype {
        name: &'a str,
        returns: Vec<Variable<'a>>,
        parameters: Vec<Variable<'a>>,
    },
    Scope(Vec<Item<'a>>),
    /// `.loc file line …`: what follows comes from there.
    Location(Location),
    Instruction(Instruction<'a>),
}

/// A `.loc`: file number, line and column, and those of the call it was inlined for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    pub place: (u32, u32, u32),
    pub inlined_at: Option<(u32, u32, u32)>,
}

/// An instruction as written.
#[derive(Debug)]
pub struct Instruction<'a> {
    /// `@p` or `@!p`: name, negated.
    pub guard: Option<(&'a str, bool)>,
    /// The opcode and its modifiers, e.g. `["ld", "global", "v4", "f32"]`; a `::` part keeps it, as in
    /// `shared::cluster`.
    pub parts: Vec<&'a str>,
    pub operands: Vec<Operand<'a>>,
    pub line: u32,
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand<'a> {
    /// A register, symbol, label or special register, with its component if any (`%tid.x`).
    Name(&'a str),
    /// `symbol+4`.
    NameOffset(&'a str, i64),
    /// An integer, two's complement in 64 bits.
    Int(u64),
    /// `0f3F800000`.
    Float32(u32),
    /// `0d3FF0000000000000` or a decimal with a point.
    Float64(u64),
    /// `!p`.
    Not(&'a str),
    /// `a|b`.
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `{a, b}`.
    Vector(Vec<Operand<'a>>),
    /// `[base+offset]` or `[base, {coordinates}]`.
    Address { base: Box<Operand<'a>>, offset: i64, coordinates: Option<Vec<Operand<'a>>> },
    /// `(a, b)` of a call.
    List(Vec<Operand<'a>>),
    /// `_`.
    Sink,
}
