//! The build script's view of what the kernels take of a multiprocessor.

#[allow(dead_code)] // the build script uses the rest
#[path = "../build/resources.rs"]
mod resources;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gradroute::cuda::{Properties, Wish, plan_linear};
use gradroute::ops::plan::Request;
use gradroute::problem::{Dtype, Linear, Rows};
use gradroute::projection::Sketch;
use resources::{Cell, Table, Usage};

/// A report as ptxas writes it, of a kernel on two architectures.
fn report(kernel: &str, registers: [u32; 2], spilled: [u32; 3]) -> String {
    let [stack, stores, loads] = spilled;
    let entry = |arch: u32, registers: u32| {
        format!(
            "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function '{kernel}' for \
             'sm_{arch}'\nptxas info    : Function properties for {kernel}\n    {stack} bytes stack frame, \
             {stores} bytes spill stores, {loads} bytes spill loads\nptxas info    : Used {registers} \
             registers, used 1 barriers, 2304 bytes smem, 512 bytes cmem[0]\nptxas info    : Compile time = \
             5.1 ms\n"
        )
    };
    entry(80, registers[0]) + &entry(90, registers[1])
}

fn table(report: &str) -> Table {
    let usages = resources::usages(report).unwrap();
    let threads = usages.iter().map(|usage| (usage.kernel.clone(), 256)).collect();
    resources::table(&usages, &threads).unwrap()
}

#[test]
fn reports_are_read() {
    let usages = resources::usages(&report("k", [255, 40], [0; 3])).unwrap();
    let usage = |arch, registers| Usage {
        kernel: "k".into(),
        arch,
        registers,
        shared: 2304,
        spilled: [0; 3],
    };
    assert_eq!(usages, [usage(80, 255), usage(90, 40)]);
    assert_eq!(resources::usages("ptxas info    : 0 bytes gmem\n"), Ok(Vec::new()));
    for strange in [
        "Compiling entry function 'k' for 'sm_80'\n",
        "Compiling entry function 'k' for 'sm_90q'\n",
        "Compiling entry function 'k' for 'sm_80'\nUsed many registers\n",
        "Used 8 registers\n",
    ] {
        assert!(resources::usages(strange).is_err(), "{strange}");
    }
}

#[test]
fn spills_and_stack_frames_are_named() {
    for spilled in [[8, 0, 0], [0, 16, 0], [0, 0, 120]] {
        let text = report("good", [8; 2], [0; 3]) + &report("other", [8; 2], spilled);
        let spills = resources::spills(&resources::usages(&text).unwrap());
        assert!(spills.len() == 2 && spills[1].starts_with("other for sm_90"), "{spills:?}");
    }
}

#[test]
fn launch_bounds_come_from_the_ptx() {
    let image = b"\x50\xed\x55\xba.visible .entry one(\n\t.param .u64 p\n)\n.maxntid 32, 1, 1\n{\n\tret;\n}\n\
                  .visible .entry two(\n)\n.maxntid 256\n.minnctapersm 1\n{\n}\n.entry three()\n{\n\
                  // .maxntid 8\n}\n\xff";
    let expected = [("one", 32), ("two", 256)].map(|(name, threads)| (name.to_string(), threads));
    assert_eq!(resources::bounds(image), BTreeMap::from(expected));
    let usages = resources::usages(&report("three", [8; 2], [0; 3])).unwrap();
    let error = resources::table(&usages, &resources::bounds(image)).unwrap_err();
    assert!(error.contains("three") && error.contains("__launch_bounds__"), "{error}");
}

#[test]
fn blocks_are_what_nvidia_computes() {
    // By cuda_occupancy.h of the pinned toolkit.
    let blocks = |arch, threads, registers, shared| {
        let usage = Usage { kernel: "k".into(), arch, registers, shared, ..Usage::default() };
        let threads = [("k".to_string(), threads)].into();
        resources::table(&[usage], &threads).unwrap()["k"].cells[&arch].blocks
    };
    for (case, expected) in [
        ((80, 256, 255, 92416), 1),
        ((80, 256, 119, 55296), 2),
        ((80, 32, 68, 0), 28),
        ((80, 1024, 32, 0), 2),
        ((86, 256, 119, 55296), 1),
        ((86, 256, 40, 4096), 6),
        ((86, 32, 26, 0), 16),
        ((89, 256, 141, 49152), 1),
        ((89, 32, 26, 0), 24),
        ((90, 256, 37, 64), 6),
        ((90, 256, 28, 0), 8),
        ((90, 96, 80, 1000), 8),
        ((100, 256, 127, 55296), 2),
        ((100, 32, 26, 0), 32),
        ((120, 256, 127, 55296), 1),
        ((120, 32, 26, 0), 24),
    ] {
        let (arch, threads, registers, shared) = case;
        assert_eq!(blocks(arch, threads, registers, shared), expected, "{case:?}");
    }
}

#[test]
fn a_table_survives_its_text() {
    let mut found = table(&report("linear_wgrad_f16", [255, 251], [0; 3]));
    found.extend(table(&report("reduce", [17, 19], [0; 3])));
    let text = resources::write(&found, "13.2", &[80, 90]);
    assert!(
        text.contains("| linear_wgrad_f16 | 256 | 90112 | 255 / 2304 / 1 | 251 / 2304 / 1 |\n")
    );
    assert_eq!(resources::parse(&text), Ok(found));
    assert!(resources::parse(&text.replace("255 / 2304", "255 / ?")).is_err());
    assert!(resources::parse(&text.replace("| 256 |", "| many |")).is_err());
}

#[test]
fn only_what_is_worse_or_unknown_is_a_regression() {
    let committed = table(&report("k", [41, 41], [0; 3]));
    let found = |registers| table(&report("k", registers, [0; 3]));
    assert_eq!(resources::regressions(&found([41, 41]), &committed), Vec::<String>::new());
    assert_eq!(resources::regressions(&found([32, 38]), &committed), Vec::<String>::new());
    // What two runs of the assembler may differ by is none; what is more is one.
    assert_eq!(resources::regressions(&found([41, 45]), &committed), Vec::<String>::new());
    let worse = resources::regressions(&found([41, 46]), &committed);
    assert!(worse.len() == 1 && worse[0].contains("k for sm_90: 46 registers"), "{worse:?}");
    let mut fewer = found([41, 41]);
    let cell = fewer.get_mut("k").unwrap().cells.get_mut(&80).unwrap();
    *cell = Cell { blocks: cell.blocks - 1, ..*cell };
    assert_eq!(resources::regressions(&fewer, &committed).len(), 1);
    let unknown = resources::regressions(&table(&report("new", [8; 2], [0; 3])), &committed);
    assert!(unknown.len() == 2 && unknown[0].contains("not in the table"), "{unknown:?}");
}

#[test]
fn a_difference_is_one_in_either_direction() {
    let committed = table(&report("k", [46, 46], [0; 3]));
    let found = |registers| table(&report("k", registers, [0; 3]));
    assert_eq!(resources::differences(&found([42, 48]), &committed), Vec::<String>::new());
    assert_eq!(resources::differences(&found([41, 46]), &committed).len(), 1);
    let other = resources::differences(&table(&report("new", [46; 2], [0; 3])), &committed);
    assert!(other.len() == 3 && other[2] == "k is in the table only", "{other:?}");
    let mut planned = found([46, 46]);
    planned.get_mut("k").unwrap().planned += 1;
    assert_eq!(resources::differences(&planned, &committed).len(), 1);
}

#[test]
fn the_committed_table_can_be_read() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(resources::TABLE);
    let text = fs::read_to_string(file).unwrap();
    let committed = resources::parse(&text).unwrap();
    assert!(committed.contains_key("abi_probe"), "{}", resources::BLESS);
    assert!(committed.values().all(|row| row.cells.values().all(|cell| cell.blocks > 0)));
}

#[test]
fn the_table_assumes_what_plans_ask_for() {
    let layer = Linear::new(Rows::uniform(16, 256).unwrap(), 1280, 1280).unwrap();
    let request = Request { dw: true, norms: true, sketch: true, ..Request::default() };
    let properties = Properties { multiprocessors: 132, shared_bytes: 227 << 10 };
    let sketches = [Sketch::two_sided(16, 1, 0).unwrap(), Sketch::count(256, 1, 0).unwrap()];
    let shared = sketches.map(|sketch| {
        let wish = Wish { request, sketch: Some(sketch), ..Wish::default() };
        plan_linear(&layer, Dtype::Bf16, wish, &properties).unwrap().formed().shared_bytes
    });
    assert_eq!(shared.into_iter().max(), Some(resources::planned("linear_wgrad_bf16")));
}
