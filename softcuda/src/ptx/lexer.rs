//! Cuts a PTX text into tokens, each with its line.

use super::PtxError;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    /// A name, `%r1`, or an opcode with all its dotted parts, `ld.shared::cluster.v4.f32`.
    Word(&'a str),
    /// A directive with its dot, `.reg`.
    Directive(&'a str),
    /// An integer's bits.
    Int(u64),
    Float32(u32),
    Float64(u64),
    Text(&'a str),
    Punct(u8),
    End,
}

pub struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

fn word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%')
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1 }
    }

    fn byte(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_blank(&mut self) -> Result<(), PtxError> {
        loop {
            match (self.byte(0), self.byte(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                (b'/', b'/') => {
                    while self.at < self.text.len() && self.byte(0) != b'\n' {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => {
                    let rest = &self.text[self.at..];
                    let end = rest.find("*/").ok_or_else(|| self.error("comment without end"))?;
                    self.line += rest[..end].bytes().filter(|&b| b == b'\n').count() as u32;
                    self.at += end + 2;
                }
                _ => return Ok(()),
            }
        }
    }

    fn error(&self, what: &str) -> PtxError {
        PtxError::new(self.line, what)
    }

    /// The next token and the line it starts on.
    pub fn next(&mut self) -> Result<(Token<'a>, u32), PtxError> {
        self.skip_blank()?;
        let line = self.line;
        if self.at >= self.text.len() {
            return Ok((Token::End, line));
        }
        let byte = self.byte(0);
        let token = match byte {
            b'0'..=b'9' => self.number()?,
            b'"' => self.string()?,
            b'.' if word_byte(self.byte(1)) => {
                self.at += 1;
                let start = self.at;
                while word_byte(self.byte(0)) {
                    self.at += 1;
                }
                Token::Directive(&self.text[start..self.at])
            }
            _ if word_byte(byte) => Token::Word(self.word()),
            0..=127 => {
                self.at += 1;
                Token::Punct(byte)
            }
            _ => return Err(self.error("character outside ASCII")),
        };
        Ok((token, line))
    }

    /// A word with its dotted parts; a single `:` ends it, `::` belongs to it.
    fn word(&mut self) -> &'a str {
        let start = self.at;
        loop {
            let byte = self.byte(0);
            if word_byte(byte) || (byte == b'.' && word_byte(self.byte(1))) {
                self.at += 1;
            } else if byte == b':' && self.byte(1) == b':' && word_byte(self.byte(2)) {
                self.at += 2;
            } else {
                break;
            }
        }
        &self.text[start..self.at]
    }

    fn string(&mut self) -> Result<Token<'a>, PtxError> {
        let start = self.at + 1;
        let rest = &self.text[start..];
        let end = rest.find('"').ok_or_else(|| self.error("string without end"))?;
        self.line += rest[..end].bytes().filter(|&b| b == b'\n').count() as u32;
        self.at = start + end + 1;
        Ok(Token::Text(&rest[..end]))
    }

    fn number(&mut self) -> Result<Token<'a>, PtxError> {
        let start = self.at;
        while self.byte(0).is_ascii_alphanumeric() {
            self.at += 1;
        }
        let digits = &self.text[start..self.at];
        let bad = || PtxError::new(self.line, &format!("not a number: {digits}"));
        let lower = digits.to_ascii_lowercase();
        if let Some(hex) = lower.strip_prefix("0f").filter(|hex| hex.len() == 8) {
            return u32::from_str_radix(hex, 16).map(Token::Float32).map_err(|_| bad());
        }
        if let Some(hex) = lower.strip_prefix("0d").filter(|hex| hex.len() == 16) {
            return u64::from_str_radix(hex, 16).map(Token::Float64).map_err(|_| bad());
        }
        // A decimal fraction; `.` after digits is never a directive.
        if self.byte(0) == b'.' && self.byte(1).is_ascii_digit() {
            self.at += 1;
            while self.byte(0).is_ascii_alphanumeric() {
                let exponent = matches!(self.byte(0), b'e' | b'E');
                self.at += 1;
                if exponent && matches!(self.byte(0), b'+' | b'-') {
                    self.at += 1;
                }
            }
            let value: f64 = self.text[start..self.at].parse().map_err(|_| bad())?;
            return Ok(Token::Float64(value.to_bits()));
        }
        let plain = lower.trim_end_matches('u');
        let (radix, plain) = match plain.as_bytes() {
            [b'0', b'x', ..] => (16, &plain[2..]),
            [b'0', b'b', ..] => (2, &plain[2..]),
            [b'0', _, ..] => (8, &plain[1..]),
            _ => (10, plain),
        };
        u64::from_str_radix(plain, radix).map(Token::Int).map_err(|_| bad())
    }
}
