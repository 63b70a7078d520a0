//! Lowering of one kernel with all functions it reaches.

use std::collections::HashMap;

use super::names::{Binding, Scope, special};
use super::{Lowered, Symbols, align, bank_of, function_address, function_named, layout};
use crate::ir::{
    Addr, Control, FunctionCode, Inst, Kernel, Op, PredSrc, Reg, Source, Space, Special, Src, Ty,
};
use crate::pressure::{Uses, estimate};
use crate::ptx::PtxError;
use crate::ptx::ast::{Function, Instruction, Item, Location, Module, Operand, Variable};

/// The state of lowering a kernel; families ask it for operands.
pub struct Lowerer<'a> {
    module: &'a Module<'a>,
    symbols: &'a Symbols<'a>,
    scopes: Vec<Scope<'a>>,
    /// Names of the functions reached so far, in the order of [`Kernel::functions`].
    reached: Vec<&'a Function<'a>>,
    /// Position of each label; patched into branches at the end of a function.
    labels: Vec<Option<u32>>,
    /// Slots in use: predicates, 32 bits, 64 bits.
    slots: [u32; 3],
    carry: Option<u32>,
    frame: u64,
    shared: u64,
    shared_align: u64,
    /// Alignment of the unsized shared arrays, where there are any.
    dynamic_align: u64,
    shared_names: HashMap<&'a str, u32>,
    code: Vec<Inst>,
    /// Of every instruction in `code`.
    uses: Vec<Uses>,
    /// Of the instruction being lowered.
    touched: Uses,
    sources: Vec<Source>,
    /// Entry of each place, and the last one of each file, line and column.
    source_index: HashMap<Location, u32>,
    last_source: HashMap<(u32, u32, u32), u32>,
    source: u32,
    /// Line of the instruction being lowered.
    pub line: u32,
}

impl<'a> Lowerer<'a> {
    pub(super) fn kernel(
        module: &'a Module<'a>,
        symbols: &'a Symbols<'a>,
        entry: &'a Function<'a>,
    ) -> Lowered<Kernel> {
        let mut this = Self {
            module,
            symbols,
            scopes: Vec::new(),
            reached: std::iter::once(entry).chain(super::addressed(module)).collect(),
            labels: Vec::new(),
            slots: [0; 3],
            carry: None,
            frame: 0,
            shared: 0,
            shared_align: 16,
            dynamic_align: 1,
            shared_names: HashMap::new(),
            code: Vec::new(),
            uses: Vec::new(),
            touched: Uses::default(),
            sources: vec![Source::default()],
            source_index: HashMap::new(),
            last_source: HashMap::new(),
            source: 0,
            line: entry.line,
        };
        let mut functions = Vec::new();
        while let Some(&function) = this.reached.get(functions.len()) {
            functions.push(this.function(function)?);
        }
        mark_recursive(&this.code, &mut functions);
        crate::memory::forget_unread(&mut this.code, &this.uses);
        let (parameters, parameter_bytes) = layout(&entry.parameters)?;
        let number = |name: &str| {
            let found = entry.directives.iter().find(|(directive, _)| *directive == name);
            found.map(|(_, numbers)| numbers.clone())
        };
        let dims =
            |numbers: Vec<u32>| [0, 1, 2].map(|axis| numbers.get(axis).copied().unwrap_or(1));
        let required_block = number("reqntid").map(dims);
        let max = number("maxntid").map(dims).or(required_block);
        let first = |name: &str| number(name).and_then(|numbers| numbers.first().copied());
        let max_registers = first("maxnreg");
        let frames: u64 = functions.iter().map(|f: &FunctionCode| u64::from(f.frame)).sum();
        let registers = estimate(&this.code, &this.uses, this.slots);
        Ok(Kernel {
            name: entry.name.to_owned(),
            slots: this.slots,
            parameters,
            parameter_bytes,
            shared_bytes: align(this.shared, this.dynamic_align) as u32,
            shared_align: this.shared_align as u32,
            local_bytes: frames as u32,
            const_bytes: module
                .variables
                .iter()
                .filter(|v| v.space == "const")
                .map(|v| v.bytes() as u32)
                .sum(),
            max_threads: max
                .map(|dims| dims.iter().fold(1u32, |product, &n| product.saturating_mul(n))),
            required_block,
            required_cluster: number("reqnctapercluster").map(dims),
            min_blocks: first("minnctapersm").unwrap_or(0),
            max_registers,
            registers,
            functions,
            code: this.code,
            sources: this.sources,
            ptx_version: module.version.0 * 10 + module.version.1,
            target: target_number(module),
        })
    }

    pub fn error<T>(&self, what: impl AsRef<str>) -> Lowered<T> {
        Err(PtxError::new(self.line, what.as_ref()))
    }

    /// The module's `.target` number, e.g. 90 for `sm_90a`.
    pub fn target(&self) -> u32 {
        target_number(self.module)
    }

    fn function(&mut self, function: &'a Function<'a>) -> Lowered<FunctionCode> {
        let before = self.slots;
        let entry = self.code.len() as u32;
        self.frame = 0;
        self.scopes.push(Scope::default());
        let (parameters, returns) = if function.entry {
            for (variable, (offset, _)) in
                function.parameters.iter().zip(layout(&function.parameters)?.0)
            {
                self.bind(variable.name, Binding::Parameter(offset));
            }
            (Vec::new(), Vec::new())
        } else {
            let mut bind = |variables: &'a [Variable<'a>]| -> Lowered<Vec<(u32, u32)>> {
                variables.iter().map(|v| self.frame_variable(v)).collect()
            };
            (bind(&function.parameters)?, bind(&function.returns)?)
        };
        let Some(body) = &function.body else {
            return Err(PtxError::new(
                function.line,
                &format!("function {} has no body here: link it in", function.name),
            ));
        };
        self.scope(body)?;
        self.scopes.pop();
        let end = if function.entry { Control::Exit } else { Control::Return };
        self.push(None, Op::Control(end));
        self.patch(entry as usize)?;
        Ok(FunctionCode {
            name: function.name.to_owned(),
            entry,
            frame: align(self.frame, 16) as u32,
            parameters,
            returns,
            slots: [0, 1, 2].map(|bank| (before[bank], self.slots[bank])),
            recursive: false,
        })
    }

    /// Branches were lowered to label numbers: make them positions.
    fn patch(&mut self, from: usize) -> Lowered<()> {
        for inst in &mut self.code[from..] {
            let resolve = |target: &mut u32| {
                let position = self.labels[*target as usize];
                *target = position.ok_or_else(|| PtxError::new(inst.line, "undefined label"))?;
                Ok(())
            };
            match &mut inst.op {
                Op::Control(Control::Branch { target }) => resolve(target)?,
                Op::Control(Control::BranchTable { targets, .. }) => {
                    targets.iter_mut().try_for_each(resolve)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn push(&mut self, guard: Option<PredSrc>, op: Op) {
        self.uses.push(std::mem::take(&mut self.touched));
        self.code.push(Inst { guard, op, line: self.line, source: self.source });
    }

    fn scope(&mut self, items: &'a [Item<'a>]) -> Lowered<()> {
        self.scopes.push(Scope::default());
        for item in items {
            if let Item::Label { name, .. } = item {
                self.labels.push(None);
                self.bind(name, Binding::Label(self.labels.len() - 1));
            }
        }
        for item in items {
            self.item(item)?;
        }
        self.scopes.pop();
        Ok(())
    }

    fn item(&mut self, item: &'a Item<'a>) -> Lowered<()> {
        match item {
            Item::Register { ty, name, count } => self.registers(ty, name, *count)?,
            Item::Variable(variable) => self.variable(variable)?,
            Item::Label { name, line } => {
                self.line = *line;
                let Some(Binding::Label(label)) = self.find(name) else { unreachable!("bound") };
                self.labels[label] = Some(self.code.len() as u32);
            }
            Item::Targets { name, targets } => self.bind(name, Binding::Targets(targets.clone())),
            Item::Prototype { name, returns, parameters } => {
                let bytes = |variables: &[Variable<'_>]| {
                    variables.iter().map(|v| v.bytes() as u32).collect()
                };
                let (returns, parameters) = (bytes(returns), bytes(parameters));
                self.bind(name, Binding::Prototype { returns, parameters });
            }
            Item::Scope(items) => self.scope(items)?,
            Item::Location(location) => self.locate(*location),
            Item::Instruction(instruction) => self.instruction(instruction)?,
        }
        Ok(())
    }

    fn locate(&mut self, location: Location) {
        let next = self.sources.len() as u32;
        self.source = *self.source_index.entry(location).or_insert(next);
        let (file, line, _) = location.place;
        if self.source == next {
            let path = self.module.files.iter().find(|(number, _)| *number == file);
            let file = path.map_or(String::new(), |(_, path)| (*path).to_owned());
            let caller = location.inlined_at.and_then(|call| self.last_source.get(&call).copied());
            self.sources.push(Source { file, line, caller: caller.unwrap_or(0) });
        }
        self.last_source.insert(location.place, self.source);
    }

    fn instruction(&mut self, instruction: &'a Instruction<'a>) -> Lowered<()> {
        self.line = instruction.line;
        let guard = match instruction.guard {
            Some((name, negated)) => Some(PredSrc { negated, ..self.predicate_slot(name)? }),
            None => None,
        };
        let op = match super::control::lower(self, instruction)? {
            Some(control) => Some(Op::Control(control)),
            None => family(self, instruction)?,
        };
        let Some(op) = op else {
            return self.error(format!("unknown instruction {}", instruction.parts.join(".")));
        };
        self.push(guard, op);
        Ok(())
    }

    // Declarations.

    fn bind(&mut self, name: &'a str, binding: Binding<'a>) {
        self.scopes.last_mut().expect("inside a scope").bind(name, binding);
    }

    /// Slots for `count` registers of a type.
    fn allocate(&mut self, ty: Ty, count: u32) -> Lowered<Reg> {
        let (bank, width) = match ty.bits() {
            1 => (0, 1),
            64 => (2, 1),
            128 => (2, 2),
            _ => (1, 1),
        };
        let first = self.slots[bank];
        let end = u64::from(first) + u64::from(count) * width;
        if end > 1 << 20 {
            return self.error("more than a million registers");
        }
        self.slots[bank] = end as u32;
        Ok(bank_of(ty, first))
    }

    fn registers(&mut self, ty: &str, name: &'a str, count: Option<u32>) -> Lowered<()> {
        let Some(ty) = Ty::parse(ty) else {
            return self.error(format!("unknown register type .{ty}"));
        };
        let first = self.allocate(ty, count.unwrap_or(1))?;
        match count {
            None => self.bind(name, Binding::Register(first, ty)),
            Some(count) => {
                let scope = self.scopes.last_mut().expect("inside a scope");
                scope.bind_numbered(name, first, ty, count);
            }
        }
        Ok(())
    }

    fn variable(&mut self, variable: &'a Variable<'a>) -> Lowered<()> {
        self.line = variable.line;
        match variable.space {
            "shared" => {
                let offset = self.shared_variable(variable)?;
                self.bind(variable.name, Binding::Shared(offset));
            }
            "local" | "param" | "reg" => drop(self.frame_variable(variable)?),
            _ => return self.error(format!(".{} inside a function", variable.space)),
        }
        Ok(())
    }

    fn frame_variable(&mut self, variable: &'a Variable<'a>) -> Lowered<(u32, u32)> {
        let offset = align(self.frame, variable.align.max(4));
        self.frame = offset + variable.bytes();
        if self.frame > 512 << 10 {
            return Err(PtxError::new(variable.line, "more than 512 KiB of local memory"));
        }
        self.bind(variable.name, Binding::Frame(offset as u32));
        Ok((offset as u32, variable.bytes() as u32))
    }

    /// Static shared memory is laid out as met; all unsized arrays begin where it ends.
    fn shared_variable(&mut self, variable: &Variable<'a>) -> Lowered<u32> {
        self.shared_align = self.shared_align.max(variable.align);
        if variable.count.is_none() {
            self.dynamic_align = self.dynamic_align.max(variable.align);
            return Ok(DYNAMIC_SHARED);
        }
        let offset = align(self.shared, variable.align);
        self.shared = offset + variable.bytes();
        if self.shared > 1 << 20 {
            return Err(PtxError::new(variable.line, "more than 1 MiB of shared memory"));
        }
        Ok(offset as u32)
    }

    // Names and operands.

    fn find(&mut self, name: &str) -> Option<Binding<'a>> {
        if let Some(found) = self.scopes.iter().rev().find_map(|scope| scope.find(name)) {
            return Some(found);
        }
        if let Some(&address) = self.symbols.get(name) {
            return Some(Binding::Global(address));
        }
        if let Some(&offset) = self.shared_names.get(name) {
            return Some(Binding::Shared(offset));
        }
        let module = self.module;
        let variable = module.variables.iter().find(|v| v.space == "shared" && v.name == name)?;
        let offset = self.shared_variable(variable).ok()?;
        self.shared_names.insert(variable.name, offset);
        Some(Binding::Shared(offset))
    }

    fn predicate_slot(&mut self, name: &str) -> Lowered<PredSrc> {
        match self.find(name) {
            Some(Binding::Register(Reg::P(slot), _)) => Ok(PredSrc { slot, negated: false }),
            _ => self.error(format!("{name} is not a predicate")),
        }
    }

    /// A predicate operand, `p` or `!p`.
    pub fn predicate(&mut self, operand: &Operand<'a>) -> Lowered<PredSrc> {
        match operand {
            Operand::Name(name) => self.predicate_slot(name),
            Operand::Not(name) => Ok(PredSrc { negated: true, ..self.predicate_slot(name)? }),
            _ => self.error("expected a predicate"),
        }
    }

    /// The declared type of a register operand, if it is one.
    pub fn register_type(&mut self, operand: &Operand<'a>) -> Option<Ty> {
        let Operand::Name(name) = operand else { return None };
        match self.find(name) {
            Some(Binding::Register(_, ty)) => Some(ty),
            _ => None,
        }
    }

    /// A register to write; `_` gives one nobody reads, of the given type.
    pub fn dst(&mut self, ty: Ty, operand: &Operand<'a>) -> Lowered<Reg> {
        match operand {
            Operand::Sink => self.allocate(ty, 1),
            Operand::Name(name) => match self.find(name) {
                Some(Binding::Register(reg, _)) => {
                    let right = match reg {
                        Reg::P(_) => ty == Ty::Pred,
                        Reg::Q(_) => ty == Ty::B128,
                        // A register wider than the type is allowed where PTX says so.
                        Reg::D(_) => ty.bits() <= 64 && ty != Ty::Pred,
                        Reg::R(_) => ty.bits() <= 32 && ty != Ty::Pred,
                    };
                    if !right {
                        return self.error(format!("{name} does not fit type {ty:?}"));
                    }
                    self.touched.writes.push(reg);
                    Ok(reg)
                }
                _ => self.error(format!("{name} is not a register")),
            },
            _ => self.error("expected a register to write"),
        }
    }

    /// The predicate slot that stands for the carry flag of extended-precision arithmetic.
    pub fn carry_flag(&mut self) -> Lowered<u32> {
        if let Some(slot) = self.carry {
            return Ok(slot);
        }
        let Reg::P(slot) = self.allocate(Ty::Pred, 1)? else { unreachable!("a predicate") };
        self.carry = Some(slot);
        Ok(slot)
    }

    /// A source operand read as `ty`: a register (a wider one is cut), an immediate, a special register,
    /// or the address of a symbol in its own space.
    pub fn src(&mut self, ty: Ty, operand: &Operand<'a>) -> Lowered<Src> {
        let cut = |bits: u64| if ty.bits() >= 64 { bits } else { bits & ((1 << ty.bits()) - 1) };
        Ok(match operand {
            Operand::Int(bits) if ty == Ty::F32 => {
                Src::Imm(u64::from((*bits as i64 as f32).to_bits()))
            }
            Operand::Int(bits) if ty == Ty::F64 => Src::Imm((*bits as i64 as f64).to_bits()),
            Operand::Int(bits) => Src::Imm(cut(*bits)),
            Operand::Float32(bits) if ty == Ty::F64 => {
                Src::Imm(f64::from(f32::from_bits(*bits)).to_bits())
            }
            Operand::Float32(bits) => Src::Imm(u64::from(*bits)),
            Operand::Float64(bits) if ty.bits() == 32 => {
                Src::Imm(u64::from((f64::from_bits(*bits) as f32).to_bits()))
            }
            Operand::Float64(bits) => Src::Imm(*bits),
            Operand::Name(name) => self.named(name, 0)?,
            Operand::NameOffset(name, offset) => self.named(name, *offset)?,
            _ => return self.error("expected a register or a constant"),
        })
    }

    fn named(&mut self, name: &str, offset: i64) -> Lowered<Src> {
        let plus = |base: u64| base.wrapping_add(offset as u64);
        Ok(match self.find(name) {
            Some(Binding::Register(reg, _)) if offset == 0 => {
                self.touched.reads.push(reg);
                Src::Reg(reg)
            }
            Some(Binding::Frame(base)) => Src::Frame(plus(u64::from(base)) as u32),
            Some(Binding::Parameter(base)) => Src::Imm(plus(u64::from(base))),
            Some(Binding::Shared(DYNAMIC_SHARED)) => return self.dynamic_shared(offset),
            Some(Binding::Shared(base)) => Src::Imm(plus(u64::from(base))),
            Some(Binding::Global(base)) => Src::Imm(plus(base)),
            Some(_) => return self.error(format!("{name} cannot be read here")),
            None => match special(name) {
                Some(special) => Src::Special(special),
                None => match self.function_index(name) {
                    Some(index) => function_address(index),
                    None => return self.error(format!("unknown name {name}")),
                },
            },
        })
    }

    /// Address of dynamic shared memory: known at launch only through a special register.
    fn dynamic_shared(&mut self, offset: i64) -> Lowered<Src> {
        if offset != 0 {
            return self.error("offset from an unsized shared array: add it in the address");
        }
        Ok(Src::Special(Special::DynamicSmemBegin))
    }

    /// `[base+offset]`, and the space the symbol forces (parameters of functions live in local memory).
    pub fn address(&mut self, operand: &Operand<'a>, space: Space) -> Lowered<(Addr, Space)> {
        let Operand::Address { base, offset, .. } = operand else {
            return self.error("expected an address in brackets");
        };
        let ty = if space == Space::Shared || space == Space::Cluster { Ty::U32 } else { Ty::U64 };
        let wide = match &**base {
            Operand::Name(name) if space == Space::Param => match self.find(name) {
                Some(Binding::Frame(_)) => {
                    return Ok((self.addr(ty, base, *offset)?, Space::Local));
                }
                Some(Binding::Parameter(_) | Binding::Register(..)) => ty,
                _ => return self.error(format!("{name} is not a parameter")),
            },
            _ => ty,
        };
        Ok((self.addr(wide, base, *offset)?, space))
    }

    fn addr(&mut self, ty: Ty, base: &Operand<'a>, offset: i64) -> Lowered<Addr> {
        Ok(Addr { base: self.src(ty, base)?, offset })
    }

    /// The elements of `{a, b, …}`, or the operand alone.
    pub fn vector<'o>(&self, operand: &'o Operand<'a>) -> &'o [Operand<'a>] {
        match operand {
            Operand::Vector(elements) => elements,
            single => std::slice::from_ref(single),
        }
    }

    // For control flow.

    /// A label's number, made a position when the function ends.
    pub fn label(&mut self, name: &str) -> Lowered<u32> {
        match self.find(name) {
            Some(Binding::Label(label)) => Ok(label as u32),
            _ => self.error(format!("{name} is not a label")),
        }
    }

    pub fn branch_targets(&mut self, name: &str) -> Lowered<Vec<u32>> {
        match self.find(name) {
            Some(Binding::Targets(names)) => names.into_iter().map(|n| self.label(n)).collect(),
            _ => self.error(format!("{name} is not a list of branch targets")),
        }
    }

    /// Sizes of the returned values and parameters of a `.callprototype`.
    pub fn prototype(&mut self, name: &str) -> Option<(Vec<u32>, Vec<u32>)> {
        match self.find(name) {
            Some(Binding::Prototype { returns, parameters }) => Some((returns, parameters)),
            _ => None,
        }
    }

    /// Offset in the frame of a `.param` variable.
    pub fn frame_offset(&mut self, name: &str) -> Lowered<u32> {
        match self.find(name) {
            Some(Binding::Frame(offset)) => Ok(offset),
            _ => self.error(format!("{name} is not a .param variable of this function")),
        }
    }

    /// The index in [`Kernel::functions`] of a function, which is lowered too from now on.
    pub fn function_index(&mut self, name: &str) -> Option<u32> {
        let function = function_named(self.module, name)?;
        let known = self.reached.iter().position(|reached| reached.name == function.name);
        Some(known.unwrap_or_else(|| {
            self.reached.push(function);
            self.reached.len() - 1
        }) as u32)
    }

    pub fn function_signature(&self, name: &str) -> Option<(Vec<u32>, Vec<u32>)> {
        let function = function_named(self.module, name)?;
        let bytes =
            |variables: &[Variable<'_>]| variables.iter().map(|v| v.bytes() as u32).collect();
        Some((bytes(&function.returns), bytes(&function.parameters)))
    }

    /// Bytes of the frame so far: a callee's begins behind it, aligned.
    pub fn frame_end(&self) -> u32 {
        align(self.frame, 16) as u32
    }
}

/// Marks the place of an unsized shared array until launch.
const DYNAMIC_SHARED: u32 = u32::MAX;

fn target_number(module: &Module<'_>) -> u32 {
    let digits = |target: &&str| -> Option<u32> {
        let number = target.strip_prefix("sm_")?;
        number.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse().ok()
    };
    module.targets.iter().find_map(digits).unwrap_or(0)
}

fn family<'a>(lowerer: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Option<Op>> {
    if let Some(op) = crate::bulk::lower(lowerer, i)? {
        return Ok(Some(Op::Async(Box::new(op))));
    }
    if let Some(op) = crate::memory::lower(lowerer, i)? {
        return Ok(Some(Op::Memory(Box::new(op))));
    }
    if let Some(op) = crate::collective::lower(lowerer, i)? {
        return Ok(Some(Op::Warp(Box::new(op))));
    }
    if let Some(op) = crate::matrix::lower(lowerer, i)? {
        return Ok(Some(Op::Matrix(Box::new(op))));
    }
    Ok(crate::alu::lower(lowerer, i)?.map(|op| Op::Alu(Box::new(op))))
}

/// Functions on a cycle of calls must save their registers around a call; an indirect call may reach any.
fn mark_recursive(code: &[Inst], functions: &mut [FunctionCode]) {
    let ends: Vec<u32> =
        functions.iter().skip(1).map(|f| f.entry).chain([code.len() as u32]).collect();
    let calls: Vec<Vec<usize>> = functions
        .iter()
        .zip(&ends)
        .map(|(f, &end)| {
            let body = &code[f.entry as usize..end as usize];
            body.iter()
                .flat_map(|inst| match &inst.op {
                    Op::Control(Control::Call(call)) => match call.callee {
                        crate::ir::Callee::Function(index) => vec![index as usize],
                        crate::ir::Callee::Indirect(_) => (1..functions.len()).collect(),
                        _ => Vec::new(),
                    },
                    _ => Vec::new(),
                })
                .collect()
        })
        .collect();
    for start in 0..functions.len() {
        let mut seen = vec![false; functions.len()];
        let mut next = calls[start].clone();
        while let Some(callee) = next.pop() {
            if !std::mem::replace(&mut seen[callee], true) {
                next.extend(&calls[callee]);
            }
        }
        functions[start].recursive = seen[start];
    }
}
