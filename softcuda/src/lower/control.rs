//! Branches, calls, returns: lowering.

use crate::ir::{Call, Callee, Control, Ty};
use crate::lower::{Lowered, Lowerer, operands};
use crate::ptx::ast::{Instruction, Operand};

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Option<Control>> {
    Ok(Some(match i.parts[0] {
        "bra" => {
            let [target] = operands(i)?;
            let Operand::Name(name) = target else { return l.error("expected a label") };
            Control::Branch { target: l.label(name)? }
        }
        "brx" => {
            let [index, list] = operands(i)?;
            let Operand::Name(name) = list else { return l.error("expected branch targets") };
            Control::BranchTable { index: l.src(Ty::U32, index)?, targets: l.branch_targets(name)? }
        }
        "call" => Control::Call(Box::new(call(l, i)?)),
        "ret" => Control::Return,
        "exit" => Control::Exit,
        "trap" => Control::Trap,
        "brkpt" | "pmevent" => Control::Nop,
        "nanosleep" | "griddepcontrol" | "setmaxnreg" => Control::Yield,
        _ => return Ok(None),
    }))
}

/// `call (returns), name, (arguments)[, prototype]`, the lists where there are any.
fn call<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Call> {
    let mut rest = i.operands.as_slice();
    let list = |rest: &mut &'a [Operand<'a>]| -> &'a [Operand<'a>] {
        match rest.split_first() {
            Some((Operand::List(items), tail)) => {
                *rest = tail;
                items
            }
            _ => &[],
        }
    };
    let returned = list(&mut rest);
    let Some((Operand::Name(name), mut rest)) = rest.split_first() else {
        return l.error("expected the function to call");
    };
    let given = list(&mut rest);
    let signature = match rest.first() {
        Some(Operand::Name(prototype)) => l.prototype(prototype),
        _ => l.function_signature(name),
    };
    let Some((return_bytes, parameter_bytes)) = signature else {
        return l.error(format!("unknown function {name}"));
    };
    let callee = match *name {
        "vprintf" => Callee::Printf,
        "__assertfail" => Callee::AssertFail,
        _ => match l.register_type(&Operand::Name(name)) {
            Some(ty) => Callee::Indirect(l.src(ty, &Operand::Name(name))?),
            None => match l.function_index(name) {
                Some(index) => Callee::Function(index),
                None => return l.error(format!("unknown function {name}")),
            },
        },
    };
    let arguments = places(l, given, &parameter_bytes)?;
    let returns = places(l, returned, &return_bytes)?;
    // `vprintf` is declared with registers' sizes only; nothing else needs the frame.
    Ok(Call { callee, arguments, returns, frame: l.frame_end() })
}

fn places<'a>(
    l: &mut Lowerer<'a>,
    operands: &[Operand<'a>],
    bytes: &[u32],
) -> Lowered<Vec<(u32, u32)>> {
    if operands.len() != bytes.len() {
        return l.error(format!("expected {} parameters, found {}", bytes.len(), operands.len()));
    }
    let place = |(operand, &bytes): (&Operand<'a>, &u32)| match operand {
        Operand::Name(name) => Ok((l.frame_offset(name)?, bytes)),
        _ => l.error("expected a .param variable"),
    };
    operands.iter().zip(bytes).map(place).collect()
}
