//! The parser on text as nvcc and inline assembly write it, and on text nobody should write.

use softcuda::ptx::ast::{Init, Item, Operand};
use softcuda::ptx::parse;

const HEAD: &str = ".version 8.7\n.target sm_90a, debug\n.address_size 64\n";

fn body(statements: &str) -> String {
    format!("{HEAD}.visible .entry k(.param .u64 p)\n{{\n{statements}\n}}")
}

fn operands_of(statement: &str) -> (Vec<String>, String) {
    let text = body(statement);
    let module = parse(&text).unwrap();
    let Some([Item::Instruction(i)]) = module.functions[0].body.as_deref() else {
        panic!("one instruction expected in {statement}");
    };
    (i.parts.iter().map(|part| (*part).to_owned()).collect(), format!("{:?}", i.operands))
}

#[test]
fn heads_of_modules_and_kernels() {
    let text = format!(
        "{HEAD}.file 1 \"a.cu\", 5, 7\n.extern .shared .align 16 .b8 smem[];
         .visible .const .align 4 .f32 table[2][2] = {{{{0f3F800000, 0f00000000}}, {{-1, 2}}}};
         .global .align 8 .u64 where[2] = {{generic(table)+4, 0xFF(table)}};
         .visible .entry k(.param .u64 .ptr .global .align 1 a, .param .align 8 .b8 b[24])
         .maxntid 256, 1, 1\n.minnctapersm 2\n{{ ret; }}
         .func (.param .b32 r) f (.param .b64 x);"
    );
    let module = parse(&text).unwrap();
    assert_eq!((module.version, module.targets), ((8, 7), vec!["sm_90a", "debug"]));
    assert_eq!(module.files, [(1, "a.cu")]);
    let [smem, table, place] = &module.variables[..] else { panic!("three variables") };
    assert_eq!((smem.count, smem.align, smem.linkage), (None, 16, "extern"));
    assert_eq!((table.bytes(), table.init.len()), (16, 4));
    assert_eq!(table.init[2], Init::Bits(u64::MAX));
    assert_eq!(
        place.init[0],
        Init::Address { name: "table", offset: 4, generic: true, mask: None }
    );
    let [k, f] = &module.functions[..] else { panic!("two functions") };
    assert_eq!(k.directives, [("maxntid", vec![256, 1, 1]), ("minnctapersm", vec![2])]);
    assert_eq!((k.parameters[0].bytes(), k.parameters[1].bytes()), (8, 24));
    assert!(f.body.is_none() && !f.entry && f.returns.len() == 1);
}

#[test]
fn operands_in_all_their_forms() {
    let (parts, operands) = operands_of("ld.shared::cluster.v2.f32 {%f1, %f2}, [%rd1+-8];");
    assert_eq!(parts, ["ld", "shared::cluster", "v2", "f32"]);
    assert!(operands.contains("offset: -8"), "{operands}");
    let (_, operands) = operands_of("shfl.sync.bfly.b32 %r1|%p1, %r2, 0x10, 31, -1;");
    assert!(operands.contains("Pair"), "{operands}");
    assert!(operands.contains(&format!("Int({})", u64::MAX)), "{operands}");
    let (_, operands) = operands_of("mov.f64 %fd1, 0d3FF0000000000000;");
    assert!(operands.contains(&format!("Float64({})", 1.0f64.to_bits())), "{operands}");
    let (_, operands) = operands_of("call.uni (r0), f, (a, b);");
    assert_eq!(operands.matches("List").count(), 2, "{operands}");
    let (_, operands) = operands_of("setp.lt.and.s32 p|_, %tid.x, 010, !q;");
    assert!(operands.contains("Sink") && operands.contains("Int(8)"), "{operands}");
    let (_, operands) = operands_of("cp.x.2d [a], [m, {%r1, %r2}], [b];");
    assert!(operands.contains("coordinates: Some"), "{operands}");
}

#[test]
fn scopes_labels_and_places() {
    let text = body(
        ".reg .b32 %r<10>;\n.loc 1 7 3, function_name $L__info, inlined_at 1 2 3\nadd.u32 %r1, %r1, 1;\n@!%p1 bra L;
         { .reg .pred p; L: bra.uni L; }\nt: .branchtargets a, b;\n$L: ret;",
    );
    let module = parse(&text).unwrap();
    let items = module.functions[0].body.as_ref().unwrap();
    assert!(matches!(items[0], Item::Register { name: "%r", count: Some(10), .. }));
    let Item::Location(location) = items[1] else { panic!("a place") };
    assert_eq!((location.place, location.inlined_at), ((1, 7, 3), Some((1, 2, 3))));
    assert!(matches!(&items[2], Item::Instruction(add) if add.parts == ["add", "u32"]));
    let Item::Instruction(branch) = &items[3] else { panic!("a branch") };
    assert_eq!((branch.guard, branch.line), (Some(("%p1", true)), 9));
    assert_eq!(branch.operands, [Operand::Name("L")]);
    assert!(matches!(&items[4], Item::Scope(inner) if inner.len() == 3));
    assert!(matches!(&items[5], Item::Targets { targets, .. } if *targets == ["a", "b"]));
}

#[test]
fn mistakes_name_their_line() {
    let cases = [
        ("", "no .version", 1),
        (".version 8.0\n.address_size 32", "address_size", 2),
        (".version 8.0\n.global .u32 x[0xFFFFFFFFFFFFFFFF];", "too large", 2),
        (".version 8.0\n.global .q9 x;", "unknown type", 2),
        (".version 8.0\n.entry k() {\n add.u32 %r1 %r2;\n}", "expected `,`", 3),
        (".version 8.0\n.entry k() {\n mov.u32 %r1, 0xZZ;\n}", "not a number", 3),
        (".version 8.0\n/* no end", "without end", 2),
    ];
    for (text, what, line) in cases {
        let error = parse(text).unwrap_err();
        assert!(error.what.contains(what), "{text}: {error}");
        assert_eq!(error.line, line, "{text}: {error}");
    }
}

/// Every prefix and every text with one byte replaced gives a module or an error: no panic, no hang.
#[test]
fn damaged_text_is_refused() {
    let text = body(
        ".reg .b32 %r<10>; .shared .align 4 .b8 s[16];\n@%p1 ld.global.v4.f32 {%f1,%f2,%f3,_}, [%rd1+16];
         { L: bra L; }\nmov.f32 %f1, 0f3F800000; /* c */ // d\ncall (r), f, (a);",
    );
    for end in 0..text.len() {
        let _ = parse(&text[..end]);
    }
    for at in 0..text.len() {
        for byte in ["{", "[", "(", "\"", ";", "9", "é", "<", "."] {
            let _ = parse(&format!("{}{byte}{}", &text[..at], &text[at + 1..]));
        }
    }
    let deep = body(&"{".repeat(100_000));
    assert!(parse(&deep).unwrap_err().what.contains("deeply"));
    let deep = body(&format!("mov.b32 {}", "{".repeat(100_000)));
    assert!(parse(&deep).unwrap_err().what.contains("deeply"));
}
