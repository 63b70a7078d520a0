//! Module scope: directives, variables, the heads of kernels and functions.

use super::PtxError;
use super::ast::{Function, Init, Location, Module, Variable};
use super::lexer::{Lexer, Token};

/// Scopes and vectors deeper than this are refused: no compiler writes them.
pub(super) const MAX_DEPTH: u32 = 64;

pub struct Parser<'a> {
    lexer: Lexer<'a>,
    pub(super) token: Token<'a>,
    pub(super) line: u32,
    pub(super) depth: u32,
}

pub(super) type Parsed<T> = Result<T, PtxError>;

impl<'a> Parser<'a> {
    pub fn new(text: &'a str) -> Parsed<Self> {
        let mut lexer = Lexer::new(text);
        let (token, line) = lexer.next()?;
        Ok(Self { lexer, token, line, depth: 0 })
    }

    pub(super) fn error<T>(&self, what: &str) -> Parsed<T> {
        Err(PtxError::new(self.line, what))
    }

    pub(super) fn advance(&mut self) -> Parsed<Token<'a>> {
        let (next, line) = self.lexer.next()?;
        self.line = line;
        Ok(std::mem::replace(&mut self.token, next))
    }

    pub(super) fn at(&self, punct: u8) -> bool {
        self.token == Token::Punct(punct)
    }

    pub(super) fn accept(&mut self, punct: u8) -> Parsed<bool> {
        let here = self.at(punct);
        if here {
            self.advance()?;
        }
        Ok(here)
    }

    pub(super) fn expect(&mut self, punct: u8) -> Parsed<()> {
        if self.accept(punct)? {
            return Ok(());
        }
        self.error(&format!("expected `{}`, found {:?}", punct as char, self.token))
    }

    pub(super) fn word(&mut self) -> Parsed<&'a str> {
        match self.token {
            Token::Word(word) => {
                self.advance()?;
                Ok(word)
            }
            _ => self.error(&format!("expected a name, found {:?}", self.token)),
        }
    }

    pub(super) fn integer(&mut self) -> Parsed<u64> {
        let negative = self.accept(b'-')?;
        match self.token {
            Token::Int(bits) => {
                self.advance()?;
                Ok(if negative { bits.wrapping_neg() } else { bits })
            }
            _ => self.error(&format!("expected an integer, found {:?}", self.token)),
        }
    }

    pub(super) fn small(&mut self) -> Parsed<u32> {
        let value = self.integer()?;
        u32::try_from(value).or_else(|_| self.error("number does not fit 32 bits"))
    }

    pub fn module(mut self) -> Parsed<Module<'a>> {
        let mut module = Module::default();
        loop {
            match self.token {
                Token::End if module.version == (0, 0) => return self.error("no .version"),
                Token::End => return Ok(module),
                Token::Directive(directive) => self.directive(directive, &mut module)?,
                Token::Punct(b';') => drop(self.advance()?),
                _ => return self.error(&format!("expected a directive, found {:?}", self.token)),
            }
        }
    }

    fn directive(&mut self, directive: &'a str, module: &mut Module<'a>) -> Parsed<()> {
        match directive {
            "version" => {
                self.advance()?;
                module.version = self.version()?;
            }
            "target" => {
                self.advance()?;
                module.targets.push(self.word()?);
                while self.accept(b',')? {
                    module.targets.push(self.word()?);
                }
            }
            "address_size" => {
                self.advance()?;
                if self.integer()? != 64 {
                    return self.error("only .address_size 64 is supported");
                }
            }
            "file" => {
                self.advance()?;
                let number = self.small()?;
                let Token::Text(path) = self.advance()? else {
                    return self.error("expected a path after .file");
                };
                while self.accept(b',')? {
                    self.integer()?;
                }
                module.files.push((number, path));
            }
            "loc" => drop(self.location()?),
            "section" => self.section()?,
            "pragma" => self.pragma()?,
            "alias" => {
                self.advance()?;
                let new = self.word()?;
                self.expect(b',')?;
                module.aliases.push((new, self.word()?));
                self.expect(b';')?;
            }
            _ => self.declaration(module)?,
        }
        Ok(())
    }

    fn version(&mut self) -> Parsed<(u32, u32)> {
        match self.advance()? {
            Token::Float64(bits) => {
                let text = f64::from_bits(bits);
                Ok((text as u32, (text * 10.0).round() as u32 % 10))
            }
            _ => self.error("expected a version such as 8.0"),
        }
    }

    /// Debug data: skipped to its closing brace.
    fn section(&mut self) -> Parsed<()> {
        self.skip_past(b'{', ".section without a body")?;
        self.skip_past(b'}', ".section without an end")
    }

    pub(super) fn pragma(&mut self) -> Parsed<()> {
        self.skip_past(b';', ".pragma without an end")
    }

    /// Skips up to and with a punctuation mark; the text's end before it is the given mistake.
    fn skip_past(&mut self, punct: u8, missing: &str) -> Parsed<()> {
        while !self.accept(punct)? {
            if self.token == Token::End {
                return self.error(missing);
            }
            self.advance()?;
        }
        Ok(())
    }

    /// `.loc file line column[, function_name …][, inlined_at …]`: file and line.
    pub(super) fn location(&mut self) -> Parsed<Location> {
        self.advance()?;
        let place = self.place()?;
        let mut inlined_at = None;
        while self.accept(b',')? {
            match self.word()? {
                "function_name" => {
                    self.word()?;
                    if self.accept(b'+')? {
                        self.small()?;
                    }
                }
                "inlined_at" => inlined_at = Some(self.place()?),
                other => return self.error(&format!("unknown part {other} of .loc")),
            }
        }
        Ok(Location { place, inlined_at })
    }

    /// File, line and column.
    fn place(&mut self) -> Parsed<(u32, u32, u32)> {
        Ok((self.small()?, self.small()?, self.small()?))
    }

    /// A variable, kernel or function with its linkage.
    fn declaration(&mut self, module: &mut Module<'a>) -> Parsed<()> {
        let mut linkage = "";
        loop {
            let Token::Directive(directive) = self.token else {
                return self.error("expected .entry, .func or a state space");
            };
            match directive {
                "extern" | "visible" | "weak" | "common" => {
                    linkage = directive;
                    self.advance()?;
                }
                "entry" | "func" => {
                    let function = self.function(directive == "entry")?;
                    module.functions.push(function);
                    return Ok(());
                }
                "global" | "const" | "shared" | "tex" => {
                    let mut variables = self.variables(linkage)?;
                    module.variables.append(&mut variables);
                    return Ok(());
                }
                _ => return self.error(&format!("unknown directive .{directive}")),
            }
        }
    }

    fn function(&mut self, entry: bool) -> Parsed<Function<'a>> {
        let line = self.line;
        self.advance()?;
        let mut directives = self.directives()?;
        let returns = self.parameters()?;
        let name = self.word()?;
        let parameters = self.parameters()?;
        directives.extend(self.directives()?);
        let body = if self.accept(b';')? {
            None
        } else {
            self.expect(b'{')?;
            Some(self.body()?)
        };
        Ok(Function { name, entry, returns, parameters, directives, body, line })
    }

    /// `.maxntid 256, 1, 1` and the like.
    fn directives(&mut self) -> Parsed<Vec<(&'a str, Vec<u32>)>> {
        let mut found = Vec::new();
        while let Token::Directive(name) = self.token {
            if name == "pragma" {
                self.pragma()?;
                continue;
            }
            self.advance()?;
            let mut numbers = Vec::new();
            while let Token::Int(_) = self.token {
                numbers.push(self.small()?);
                self.accept(b',')?;
            }
            if let Token::Text(_) = self.token {
                self.advance()?;
            }
            found.push((name, numbers));
        }
        Ok(found)
    }

    /// `(…, …)`; none without parentheses.
    pub(super) fn parameters(&mut self) -> Parsed<Vec<Variable<'a>>> {
        let mut parameters = Vec::new();
        if !self.accept(b'(')? {
            return Ok(parameters);
        }
        while !self.accept(b')')? {
            parameters.push(self.variable("", None)?);
            if !self.at(b')') {
                self.expect(b',')?;
            }
        }
        Ok(parameters)
    }

    /// One or more variables of the same type, to the semicolon.
    pub(super) fn variables(&mut self, linkage: &'a str) -> Parsed<Vec<Variable<'a>>> {
        let mut variables = vec![self.variable(linkage, None)?];
        while self.accept(b',')? {
            let like = variables[0].clone();
            variables.push(self.variable(linkage, Some(&like))?);
        }
        self.expect(b';')?;
        Ok(variables)
    }

    /// `.space .align n .v4 .type name[count] = init`; `like` gives what a list repeats.
    fn variable(&mut self, linkage: &'a str, like: Option<&Variable<'a>>) -> Parsed<Variable<'a>> {
        let line = self.line;
        let (mut space, mut ty, mut align, mut lanes, mut managed) = ("", "", None, 1, false);
        while let Token::Directive(directive) = self.token {
            self.advance()?;
            match directive {
                "global" | "const" | "shared" | "local" | "param" | "reg" if space.is_empty() => {
                    space = directive;
                }
                "align" => align = Some(self.integer()?),
                "ptr" | "global" | "const" | "shared" | "local" | "param" | "generic" => {}
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                "v8" => lanes = 8,
                "attribute" => {
                    self.expect(b'(')?;
                    while !self.accept(b')')? {
                        managed |= self.token == Token::Directive("managed");
                        if self.token == Token::End {
                            return self.error(".attribute without an end");
                        }
                        self.advance()?;
                    }
                }
                _ => ty = directive,
            }
        }
        if let Some(like) = like {
            (space, ty) = (like.space, like.ty);
        }
        let element = type_bytes(ty).map(|bytes| bytes * lanes);
        let Some(size) = element.or_else(|| like.map(|like| like.size)) else {
            return self.error(&format!("unknown type .{ty}"));
        };
        let name = self.word()?;
        let mut count = Some(1u64);
        while self.accept(b'[')? {
            count = if self.at(b']') {
                None
            } else {
                let length = self.integer()?;
                let total = count.unwrap_or(1).checked_mul(length);
                Some(
                    total
                        .filter(|total| total.checked_mul(size).is_some())
                        .map_or_else(|| self.error("array too large"), Ok)?,
                )
            };
            self.expect(b']')?;
        }
        let mut init = Vec::new();
        if self.accept(b'=')? {
            self.init(&mut init)?;
            if count.is_none() {
                count = Some(init.len() as u64);
            }
        }
        let align = align.unwrap_or(size);
        if !align.is_power_of_two() {
            return self.error("alignment is not a power of two");
        }
        Ok(Variable { space, linkage, name, ty, size, align, count, init, managed, line })
    }

    fn init(&mut self, found: &mut Vec<Init<'a>>) -> Parsed<()> {
        if !self.accept(b'{')? {
            let element = self.init_element()?;
            found.push(element);
            return Ok(());
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.error("initialiser nested too deeply");
        }
        while !self.accept(b'}')? {
            self.init(found)?;
            if !self.at(b'}') {
                self.expect(b',')?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn init_element(&mut self) -> Parsed<Init<'a>> {
        let negative = self.accept(b'-')?;
        match self.advance()? {
            Token::Int(bits) if self.accept(b'(')? => {
                let name = self.word()?;
                let offset = self.offset()?;
                self.expect(b')')?;
                Ok(Init::Address { name, offset, generic: false, mask: Some(bits) })
            }
            Token::Int(bits) => Ok(Init::Bits(if negative { bits.wrapping_neg() } else { bits })),
            Token::Float32(bits) => Ok(Init::Bits(u64::from(bits) ^ (u64::from(negative) << 31))),
            Token::Float64(bits) => Ok(Init::Bits(bits ^ (u64::from(negative) << 63))),
            Token::Word("generic") => {
                self.expect(b'(')?;
                let name = self.word()?;
                self.expect(b')')?;
                let offset = self.offset()?;
                Ok(Init::Address { name, offset, generic: true, mask: None })
            }
            Token::Word(name) => {
                let offset = self.offset()?;
                Ok(Init::Address { name, offset, generic: false, mask: None })
            }
            other => self.error(&format!("expected a value, found {other:?}")),
        }
    }

    /// An optional `+n` or `-n`.
    pub(super) fn offset(&mut self) -> Parsed<i64> {
        if self.accept(b'+')? || self.at(b'-') { Ok(self.integer()? as i64) } else { Ok(0) }
    }
}

/// Bytes of a fundamental type.
fn type_bytes(ty: &str) -> Option<u64> {
    Some(match ty {
        "b8" | "u8" | "s8" | "pred" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" | "texref" | "samplerref" | "surfref" => 8,
        "b128" => 16,
        _ => return None,
    })
}
