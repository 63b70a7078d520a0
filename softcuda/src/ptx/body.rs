//! Bodies: declarations, labels, instructions and their operands.

use super::ast::{Instruction, Item, Operand};
use super::lexer::Token;
use super::parser::{MAX_DEPTH, Parsed, Parser};

impl<'a> Parser<'a> {
    /// The items up to the closing brace; the opening one is already read.
    pub(super) fn body(&mut self) -> Parsed<Vec<Item<'a>>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.error("scopes nested too deeply");
        }
        let mut items = Vec::new();
        loop {
            match self.token {
                Token::Punct(b'}') => break,
                Token::Punct(b'{') => {
                    self.advance()?;
                    let scope = self.body()?;
                    items.push(Item::Scope(scope));
                }
                Token::Punct(b';') => drop(self.advance()?),
                Token::Punct(b'@') => self.guarded(&mut items)?,
                Token::Directive(directive) => self.body_directive(directive, &mut items)?,
                Token::Word(word) => self.labelled(word, &mut items)?,
                _ => return self.error(&format!("expected a statement, found {:?}", self.token)),
            }
        }
        self.depth -= 1;
        self.expect(b'}')?;
        Ok(items)
    }

    fn body_directive(&mut self, directive: &'a str, items: &mut Vec<Item<'a>>) -> Parsed<()> {
        match directive {
            "reg" => self.registers(items)?,
            "loc" => {
                let location = self.location()?;
                items.push(Item::Location(location));
            }
            "pragma" => self.pragma()?,
            "local" | "shared" | "param" | "global" | "const" | "extern" => {
                let mut linkage = "";
                if directive == "extern" {
                    linkage = directive;
                    self.advance()?;
                }
                let variables = self.variables(linkage)?;
                items.extend(variables.into_iter().map(Item::Variable));
            }
            _ => return self.error(&format!("unknown directive .{directive}")),
        }
        Ok(())
    }

    fn registers(&mut self, items: &mut Vec<Item<'a>>) -> Parsed<()> {
        self.advance()?;
        let mut ty = "";
        while let Token::Directive(directive) = self.token {
            ty = directive;
            self.advance()?;
        }
        loop {
            let name = self.word()?;
            let mut count = None;
            if self.accept(b'<')? {
                count = Some(self.small()?);
                self.expect(b'>')?;
            }
            items.push(Item::Register { ty, name, count });
            if !self.accept(b',')? {
                return self.expect(b';');
            }
        }
    }

    /// A label with what follows its colon, or an unguarded instruction.
    fn labelled(&mut self, word: &'a str, items: &mut Vec<Item<'a>>) -> Parsed<()> {
        let line = self.line;
        self.advance()?;
        if !self.accept(b':')? {
            let instruction = self.instruction(None, word, line)?;
            items.push(Item::Instruction(instruction));
            return Ok(());
        }
        match self.token {
            Token::Directive("branchtargets" | "calltargets") => {
                self.advance()?;
                let mut targets = vec![self.word()?];
                while self.accept(b',')? {
                    targets.push(self.word()?);
                }
                self.expect(b';')?;
                items.push(Item::Targets { name: word, targets });
            }
            Token::Directive("callprototype") => {
                self.advance()?;
                let returns = self.parameters()?;
                self.word()?;
                let parameters = self.parameters()?;
                while let Token::Directive(_) = self.token {
                    self.advance()?;
                    while matches!(self.token, Token::Int(_) | Token::Punct(b',')) {
                        self.advance()?;
                    }
                }
                self.expect(b';')?;
                items.push(Item::Prototype { name: word, returns, parameters });
            }
            _ => items.push(Item::Label { name: word, line }),
        }
        Ok(())
    }

    fn guarded(&mut self, items: &mut Vec<Item<'a>>) -> Parsed<()> {
        let line = self.line;
        self.expect(b'@')?;
        let negated = self.accept(b'!')?;
        let guard = (self.word()?, negated);
        let opcode = self.word()?;
        let instruction = self.instruction(Some(guard), opcode, line)?;
        items.push(Item::Instruction(instruction));
        Ok(())
    }

    fn instruction(
        &mut self,
        guard: Option<(&'a str, bool)>,
        opcode: &'a str,
        line: u32,
    ) -> Parsed<Instruction<'a>> {
        let mut operands = Vec::new();
        while !self.accept(b';')? {
            operands.push(self.operand()?);
            if !self.at(b';') {
                self.expect(b',')?;
            }
        }
        Ok(Instruction { guard, parts: opcode.split('.').collect(), operands, line })
    }

    fn operand(&mut self) -> Parsed<Operand<'a>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.error("operands nested too deeply");
        }
        let first = self.simple_operand()?;
        self.depth -= 1;
        if self.accept(b'|')? {
            let second = self.simple_operand()?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn simple_operand(&mut self) -> Parsed<Operand<'a>> {
        if self.accept(b'-')? {
            return self.number(true);
        }
        match self.token {
            Token::Int(_) | Token::Float32(_) | Token::Float64(_) => self.number(false),
            Token::Punct(b'!') => {
                self.advance()?;
                Ok(Operand::Not(self.word()?))
            }
            Token::Punct(b'{') => Ok(Operand::Vector(self.operands(b'{', b'}')?)),
            Token::Punct(b'(') => Ok(Operand::List(self.operands(b'(', b')')?)),
            Token::Punct(b'[') => self.address(),
            Token::Word("_") => {
                self.advance()?;
                Ok(Operand::Sink)
            }
            Token::Word("WARP_SZ") => {
                self.advance()?;
                Ok(Operand::Int(32))
            }
            Token::Word(name) => {
                self.advance()?;
                Ok(match self.offset()? {
                    0 => Operand::Name(name),
                    offset => Operand::NameOffset(name, offset),
                })
            }
            _ => self.error(&format!("expected an operand, found {:?}", self.token)),
        }
    }

    fn number(&mut self, negative: bool) -> Parsed<Operand<'a>> {
        Ok(match self.advance()? {
            Token::Int(bits) if negative => Operand::Int(bits.wrapping_neg()),
            Token::Int(bits) => Operand::Int(bits),
            Token::Float32(bits) => Operand::Float32(bits ^ (u32::from(negative) << 31)),
            Token::Float64(bits) => Operand::Float64(bits ^ (u64::from(negative) << 63)),
            other => return self.error(&format!("expected a number, found {other:?}")),
        })
    }

    fn operands(&mut self, open: u8, close: u8) -> Parsed<Vec<Operand<'a>>> {
        self.expect(open)?;
        let mut operands = Vec::new();
        while !self.accept(close)? {
            operands.push(self.operand()?);
            if !self.at(close) {
                self.expect(b',')?;
            }
        }
        Ok(operands)
    }

    fn address(&mut self) -> Parsed<Operand<'a>> {
        self.expect(b'[')?;
        let (base, mut offset) = match self.simple_operand()? {
            Operand::NameOffset(name, offset) => (Operand::Name(name), offset),
            base => (base, 0),
        };
        offset = offset.wrapping_add(self.offset()?);
        let mut coordinates = None;
        if self.accept(b',')? {
            let Operand::Vector(vector) = self.simple_operand()? else {
                return self.error("expected coordinates in braces");
            };
            coordinates = Some(vector);
        }
        self.expect(b']')?;
        Ok(Operand::Address { base: Box::new(base), offset, coordinates })
    }
}
