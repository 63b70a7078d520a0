//! `printf` and `assert` of kernels.

use std::io::Write;

use super::context::Context;
use crate::fault::{Check, Fault};
use crate::ir::{Call, Mask};
use crate::memory;
use crate::registers::lanes;

/// `vprintf(format, arguments)`: prints for each lane in order and returns the number of arguments.
pub(super) fn printf(call: &Call, context: &mut Context<'_>, mask: Mask) -> Result<(), Fault> {
    for lane in lanes(mask) {
        let format = argument(call, context, lane, 0)?;
        let format = string(context, lane, format)?;
        let at = argument(call, context, lane, 1)?;
        let mut buffer = Buffer { context: &mut *context, lane, at, read: 0 };
        let text = formatted(&format, &mut buffer)?;
        let read = buffer.read;
        // Nobody listening is no fault of the kernel's.
        let _ = std::io::stdout().write_all(text.as_bytes());
        if let Some(&(offset, _)) = call.returns.first() {
            let to = context.warp.place.frame + offset;
            context.warp.local.write(lane, to, &u32::to_le_bytes(read))?;
        }
    }
    Ok(())
}

/// Where conversions take their arguments from.
trait Arguments {
    /// The next argument, of 4 or 8 bytes.
    fn next(&mut self, width: u64) -> Result<u64, Fault>;
    fn string(&mut self, address: u64) -> Result<String, Fault>;
}

/// Arguments one behind the other in a lane's memory, each aligned to its width.
struct Buffer<'b, 'c> {
    context: &'b mut Context<'c>,
    lane: usize,
    at: u64,
    read: u32,
}

impl Arguments for Buffer<'_, '_> {
    fn next(&mut self, width: u64) -> Result<u64, Fault> {
        let from = self.at.next_multiple_of(width);
        let mut bytes = [0; 8];
        memory::read_generic(self.context, self.lane, from, &mut bytes[..width as usize])?;
        self.at = from + width;
        self.read += 1;
        Ok(u64::from_le_bytes(bytes))
    }

    fn string(&mut self, address: u64) -> Result<String, Fault> {
        string(self.context, self.lane, address)
    }
}

/// `__assertfail(message, file, line, function, char size)`.
pub(super) fn assertion(call: &Call, context: &mut Context<'_>, lane: usize) -> Fault {
    let text = |context: &mut Context<'_>, n: usize| {
        let address = argument(call, context, lane, n)?;
        string(context, lane, address)
    };
    let what = |context: &mut Context<'_>| -> Result<String, Fault> {
        let (message, file) = (text(context, 0)?, text(context, 1)?);
        let (line, function) = (argument(call, context, lane, 2)?, text(context, 3)?);
        Ok(format!("{file}:{line}: {function}: assertion `{message}` failed"))
    };
    match what(context) {
        Ok(what) => Fault::new(Check::Assert, what).lane(lane),
        Err(fault) => fault,
    }
}

fn argument(call: &Call, context: &mut Context<'_>, lane: usize, n: usize) -> Result<u64, Fault> {
    let Some(&(offset, bytes)) = call.arguments.get(n).filter(|(_, bytes)| *bytes <= 8) else {
        return Err(Fault::new(Check::Trap, format!("call lacks argument {n}")).lane(lane));
    };
    let mut value = [0; 8];
    let from = context.warp.place.frame + offset;
    context.warp.local.read(lane, from, &mut value[..bytes as usize])?;
    Ok(u64::from_le_bytes(value))
}

/// A zero-terminated string.
fn string(context: &mut Context<'_>, lane: usize, address: u64) -> Result<String, Fault> {
    let mut text = Vec::new();
    loop {
        let mut byte = [0];
        memory::read_generic(context, lane, address + text.len() as u64, &mut byte)?;
        if byte[0] == 0 || text.len() > 1 << 16 {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        text.push(byte[0]);
    }
}

/// C's conversions.
fn formatted(format: &str, arguments: &mut dyn Arguments) -> Result<String, Fault> {
    let mut text = String::new();
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(&flag) = rest.peek().filter(|c| "-+ #0".contains(**c)) {
            spec.flags.push(flag);
            rest.next();
        }
        spec.width = number(&mut rest, arguments)?;
        if rest.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut rest, arguments)?.unwrap_or(0));
        }
        let mut long = 4;
        while let Some(&size) = rest.peek().filter(|c| "hlLqjzt".contains(**c)) {
            if !matches!(size, 'h') {
                long = 8;
            }
            rest.next();
        }
        match rest.next() {
            Some('%') => text.push('%'),
            Some('s') => {
                let address = arguments.next(8)?;
                let mut string = arguments.string(address)?;
                string.truncate(spec.precision.unwrap_or(string.len()));
                text += &spec.pad(string, false);
            }
            Some('c') => text.push(arguments.next(4)? as u8 as char),
            Some('p') => text += &spec.pad(format!("{:#x}", arguments.next(8)?), true),
            Some('d' | 'i') => {
                let value = arguments.next(long)?;
                let value = if long == 4 { i64::from(value as i32) } else { value as i64 };
                text += &spec.integer(value < 0, value.unsigned_abs().to_string());
            }
            Some('u') => text += &spec.integer(false, arguments.next(long)?.to_string()),
            Some('x') => text += &spec.integer(false, format!("{:x}", arguments.next(long)?)),
            Some('X') => text += &spec.integer(false, format!("{:X}", arguments.next(long)?)),
            Some('o') => text += &spec.integer(false, format!("{:o}", arguments.next(long)?)),
            Some(kind @ ('f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'a' | 'A')) => {
                text += &spec.float(kind, f64::from_bits(arguments.next(8)?));
            }
            other => {
                let what = format!("printf conversion %{}", other.unwrap_or(' '));
                return Err(Fault::new(Check::Trap, what));
            }
        }
    }
    Ok(text)
}

fn number(
    rest: &mut std::iter::Peekable<std::str::Chars<'_>>,
    arguments: &mut dyn Arguments,
) -> Result<Option<usize>, Fault> {
    if rest.next_if_eq(&'*').is_some() {
        return Ok(Some((arguments.next(4)? as u32).min(4096) as usize));
    }
    let mut value = None;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        value = Some((value.unwrap_or(0) * 10 + digit as usize).min(4096));
        rest.next();
    }
    Ok(value)
}

#[derive(Debug, Default)]
struct Spec {
    flags: String,
    width: Option<usize>,
    precision: Option<usize>,
}

impl Spec {
    fn integer(&self, negative: bool, digits: String) -> String {
        let least = self.precision.unwrap_or(1);
        let digits = format!("{digits:0>least$}");
        self.pad(self.signed(negative, digits), self.precision.is_none())
    }

    fn float(&self, kind: char, value: f64) -> String {
        let precision = self.precision.unwrap_or(6);
        let digits = match kind.to_ascii_lowercase() {
            _ if !value.is_finite() => format!("{:.0}", value.abs()).to_lowercase(),
            'f' => format!("{:.precision$}", value.abs()),
            'e' => exponent(value.abs(), precision),
            'g' => shortest(value.abs(), precision.max(1)),
            _ => format!("{:e}", value.abs()),
        };
        let digits = if kind.is_uppercase() { digits.to_uppercase() } else { digits };
        self.pad(self.signed(value.is_sign_negative(), digits), value.is_finite())
    }

    fn signed(&self, negative: bool, digits: String) -> String {
        match (negative, self.flags.contains('+'), self.flags.contains(' ')) {
            (true, ..) => format!("-{digits}"),
            (_, true, _) => format!("+{digits}"),
            (_, _, true) => format!(" {digits}"),
            _ => digits,
        }
    }

    fn pad(&self, text: String, zeros: bool) -> String {
        let width = self.width.unwrap_or(0);
        let missing = width.saturating_sub(text.len());
        if self.flags.contains('-') {
            return text + &" ".repeat(missing);
        }
        if zeros && self.flags.contains('0') {
            let sign = usize::from(text.starts_with(['-', '+', ' ']));
            return format!("{}{}{}", &text[..sign], "0".repeat(missing), &text[sign..]);
        }
        " ".repeat(missing) + &text
    }
}

/// `d.dddde±dd` as C writes it.
fn exponent(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (digits, power) = text.split_once('e').expect("an exponent");
    let power: i32 = power.parse().expect("a number");
    format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
}

/// `%g`: the shorter of the two forms, trailing zeros removed.
fn shortest(value: f64, precision: usize) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let text = exponent(value, precision - 1);
    let (digits, power) = text.split_once('e').expect("an exponent");
    let power: i32 = power.parse().expect("a number");
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if power < -4 || power >= precision as i32 {
        return format!("{}e{}", trim(digits), &text[digits.len() + 1..]);
    }
    trim(&format!("{value:.*}", (precision as i32 - 1 - power).max(0) as usize))
}
