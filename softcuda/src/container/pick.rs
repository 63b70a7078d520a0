//! Which of several PTX texts a device should run.

use super::{Code, ContainerError, Found};

/// A `.target`, e.g. `sm_90a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// 90 for `sm_90`.
    pub arch: u32,
    pub kind: Kind,
}

/// How far a target carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Every later device.
    Plain,
    /// `f`: later devices of the same family.
    Family,
    /// `a`: this architecture only.
    Exact,
}

impl Target {
    /// From a name such as `sm_90a`.
    pub fn parse(name: &str) -> Option<Self> {
        let number = name.strip_prefix("sm_").or_else(|| name.strip_prefix("compute_"))?;
        let digits = number.trim_end_matches(['a', 'f']);
        let kind = match &number[digits.len()..] {
            "" => Kind::Plain,
            "f" => Kind::Family,
            "a" => Kind::Exact,
            _ => return None,
        };
        Some(Self { arch: digits.parse().ok()?, kind })
    }
}

/// True if code for `target` runs on a device of compute capability `arch`.
pub fn runs_on(target: Target, arch: u32) -> bool {
    match target.kind {
        Kind::Plain => target.arch <= arch,
        Kind::Family => target.arch <= arch && target.arch / 10 == arch / 10,
        Kind::Exact => target.arch == arch,
    }
}

/// The text for the highest architecture that the device has; specialised ones before plain ones.
pub(super) fn best(found: Vec<Code>, arch: u32) -> Found<Vec<u8>> {
    let alone = found.len() == 1;
    let mut names = Vec::new();
    let mut best: Option<(Target, Vec<u8>)> = None;
    for code in found {
        match code {
            Code::Machine(arch) => names.push(format!("machine code for sm_{arch}")),
            Code::Ptx(text) => match target(&text) {
                Some(target) => {
                    let better = best.as_ref().is_none_or(|(held, _)| target > *held);
                    if runs_on(target, arch) && better {
                        best = Some((target, text));
                    } else {
                        let suffix = ["", "f", "a"][target.kind as usize];
                        names.push(format!("PTX for sm_{}{suffix}", target.arch));
                    }
                }
                // Left to the parser, which says what is wrong with it.
                None if alone => return Ok(text),
                None => names.push("PTX without a target".to_owned()),
            },
        }
    }
    match best {
        Some((_, text)) => Ok(text),
        None if names.is_empty() => super::malformed("it holds no code"),
        None => Err(ContainerError::NoCode { arch, found: names.join(", ") }),
    }
}

/// The first `.target` of a PTX text.
fn target(text: &[u8]) -> Option<Target> {
    let directive = b".target";
    let at = text.windows(directive.len()).position(|window| window == directive)?;
    let rest = &text[at + directive.len()..];
    let rest = String::from_utf8_lossy(&rest[..rest.len().min(256)]);
    let mut words = rest.split(|c: char| c.is_whitespace() || c == ',' || c == '\0');
    words.find(|word| !word.is_empty()).and_then(Target::parse)
}
