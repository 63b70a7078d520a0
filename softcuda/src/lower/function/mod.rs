//! Lowering of one kernel with all functions it reaches: its items in order, its instructions to those of the
//! families, its labels to positions.

mod declarations;
mod operands;

use std::collections::HashMap;

use super::names::{Binding, Scope};
use super::{Lowered, Symbols, align, layout};
use crate::ir::{Control, FunctionCode, Inst, Kernel, Op, PredSrc, Source};
use crate::pressure::{Uses, estimate};
use crate::ptx::PtxError;
use crate::ptx::ast::{Function, Instruction, Item, Location, Module, Variable};

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
}

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
